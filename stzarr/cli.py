"""The command `stzarr`: every verb parses, calls one function, and prints what it returns.

Data goes to stdout, talk to stderr. Exit status: 0 done, 1 findings, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stzarr import __version__
from stzarr.console import ProgressBar, say
from stzarr.errors import StzarrError

if TYPE_CHECKING:
    from stzarr.slide import Slide

DONE, FINDINGS, FAILED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except StzarrError as error:
        say(str(error))
    except KeyboardInterrupt:
        say("interrupted" + ("; the same command continues where this one stopped" if args.run is _ingest else ""))
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        say(f"OSError [ST601]: {error.strerror or error}\n  file: {error.filename}\n  try:  mend that, then run again")
    except Exception:  # a fault of ours; Python's own exit status 1 would mean findings
        traceback.print_exc()
    return FAILED


# ------------------------------------------------------------------------------------------------------- verbs


def _ingest(args: argparse.Namespace) -> int:
    from stzarr.ingest import ReadOptions, ingest, plan
    from stzarr.slide import open as open_slide
    from stzarr.store.writer import WriteOptions

    read = ReadOptions(
        id=args.id,
        image=args.image,
        bins_um=None if args.bin_um is None else tuple(args.bin_um),
        counts=args.counts,
        mpp_source=args.mpp_source,
        max_decoded_bytes=int(args.max_decoded_gb * 2**30),
    )
    write = WriteOptions(
        image_mpp=args.mpp,
        image_frame=args.image_frame,
        meta=dict(args.meta),
        overwrite=args.overwrite,
        threads=args.threads,
    )
    if args.dry_run:
        planned = plan(args.source, read=read, write=write, reader=args.reader)
        _print(planned, args.json)
        return DONE
    with ProgressBar(quiet=args.quiet) as progress:
        store = ingest(args.source, args.store, read=read, write=write, reader=args.reader, progress=progress)
    slide = open_slide(store)
    for warning in slide.reader.attrs.get("warnings", ()):
        say(f"warning: {warning}", quiet=args.quiet)
    return _show(slide, args)


def _info(args: argparse.Namespace) -> int:
    from stzarr.slide import open as open_slide

    return _show(open_slide(args.store), args)


def _show(slide: Slide, args: argparse.Namespace) -> int:
    print(json.dumps(slide.reader.attrs, indent=2) if args.json else slide)
    return DONE


def _validate(args: argparse.Namespace) -> int:
    from stzarr.store.validate import validate

    with ProgressBar(quiet=args.quiet) as progress:
        findings = validate(args.store, deep=args.deep, progress=progress)
    if args.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding)
    say(f"{args.store}: {len(findings)} findings", quiet=args.quiet)
    return FINDINGS if findings else DONE


def _simulate(args: argparse.Namespace) -> int:
    from stzarr.simulate import simulate

    with ProgressBar(quiet=args.quiet) as progress:
        image = simulate(
            args.out,
            size_um=(args.size_um[0], args.size_um[-1]),
            seed=args.seed,
            num_genes=args.genes,
            bins_um=tuple(args.bin_um),
            image_format=args.image_format,
            turn=args.turn,
            landmarks=args.landmarks,
            progress=progress,
        )
    found = {"outs": str(args.out), "image": str(image)}
    print(json.dumps(found) if args.json else f"stzarr ingest {args.out} {args.out.name}.zarr --image {image}")
    return DONE


def _demo(args: argparse.Namespace) -> int:
    from stzarr.demo import demo

    with ProgressBar(quiet=args.quiet) as progress:
        report = demo(args.folder, outs=args.outs, image=args.image, progress=progress)
    _print(report, args.json)
    return DONE


def _bench(args: argparse.Namespace) -> int:
    from stzarr.bench import bench

    result = bench(
        args.store,
        patch_um=args.patch_um,
        image_mpp=args.mpp,
        stride_um=args.stride_um,
        bin_um=args.bin_um,
        num_genes=args.genes,
        batch_size=args.batch_size,
        seconds=args.seconds,
    )
    if args.out is not None:
        result.append_to(args.out)
    _print(result, args.json)
    return DONE


def _env(args: argparse.Namespace) -> int:
    from stzarr.environment import environment

    _print(environment(), args.json)
    return DONE


def _print(report: Any, as_json: bool) -> None:
    """Print a report: an object with `to_json()` whose `str()` is for people."""
    print(json.dumps(report.to_json(), indent=2) if as_json else report)


# ------------------------------------------------------------------------------------------------------ options


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _positive_int(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


class _OneOrTwo(argparse.Action):
    """Takes one value or two; argparse itself only counts to a fixed number."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if len(values) > 2:
            raise argparse.ArgumentError(self, f"takes one or two values, not {len(values)}")
        setattr(namespace, self.dest, values)


class _Verbs:
    """Adds verbs that share the options for reports and quiet."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(self, name: str, run: Any, about: str, *, examples: str = "") -> argparse.ArgumentParser:
        verb: argparse.ArgumentParser = self._verbs.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=examples and "examples:\n" + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(run=run)
        verb.add_argument("--json", action="store_true", help="print a JSON report on stdout")
        verb.add_argument("-q", "--quiet", action="store_true", help="no progress and no talk on stderr")
        return verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stzarr", description="Spatial omics slides as streamable Zarr stores.")
    parser.add_argument("--version", action="version", version=f"stzarr {__version__}")
    verbs = _Verbs(parser)
    _add_ingest(verbs)
    verb = verbs.add("info", _info, "say what a store holds")
    verb.add_argument("store", metavar="STORE")
    verb = verbs.add("validate", _validate, "check a store; exit status 1 if anything is found")
    verb.add_argument("store", metavar="STORE")
    verb.add_argument("--deep", action="store_true", help="read everything and compare every digest")
    _add_simulate(verbs)
    verb = verbs.add("demo", _demo, "simulate or take a run, ingest, validate, slice and stream it")
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="where the store and the picture go")
    verb.add_argument("--outs", type=Path, help="a Space Ranger run of your own")
    verb.add_argument("--image", type=Path, help="its full-resolution picture")
    _add_bench(verbs)
    verbs.add("env", _env, "say which versions and devices are here, for bug reports")
    return parser


def _add_ingest(verbs: _Verbs) -> None:
    verb = verbs.add(
        "ingest",
        _ingest,
        "convert a Space Ranger run or a slide into a store",
        examples=(
            "  stzarr ingest outs slide.zarr --image he.btf\n"
            "  stzarr ingest slide.svs slide.zarr --mpp-source 0.5\n"
            "  stzarr ingest outs slide.zarr --dry-run      geometry and plan; no counts, no pixels are read"
        ),
    )
    verb.add_argument("source", metavar="SOURCE", type=Path, help="outs/ folder or slide file")
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store to write")
    what = verb.add_argument_group("what to read")
    what.add_argument("--image", type=Path, help="full-resolution picture of the run")
    what.add_argument("--bin-um", type=_positive, nargs="+", metavar="UM", help="bin sizes (default: smallest and 8)")
    what.add_argument("--counts", choices=["filtered", "raw"], help="which matrix (default: filtered if there)")
    what.add_argument("--mpp-source", type=_positive, metavar="UM", help="µm per pixel of a slide that does not say")
    what.add_argument("--reader", help="name of the reader (default: the first that recognises SOURCE)")
    what.add_argument("--max-decoded-gb", type=_positive, default=16.0, metavar="GB", help="limit of PNG and JPEG [16]")
    how = verb.add_argument_group("how to store it")
    how.add_argument("--id", help="name of the slide (default: from the path)")
    how.add_argument("--meta", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="donor=D1 ...")
    how.add_argument("--mpp", type=_positive, metavar="UM", help="pixel size of the registered picture")
    how.add_argument("--image-frame", choices=["um", "native", "both"], default="um", help="registered, as is, or both")
    how.add_argument(
        "--threads", type=_positive_int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
    how.add_argument("--overwrite", action="store_true", help="replace the store")
    how.add_argument("--dry-run", action="store_true", help="print geometry and plan, write nothing")


def _add_simulate(verbs: _Verbs) -> None:
    verb = verbs.add("simulate", _simulate, "write a simulated Visium HD run, marked as simulated")
    verb.add_argument("out", metavar="OUT", type=Path, help="the outs/ folder to write")
    verb.add_argument(
        "--size-um", type=_positive, nargs="+", action=_OneOrTwo, default=[1000.0], metavar="UM", help="width [height]"
    )
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--genes", type=int, default=500, metavar="N")
    verb.add_argument("--bin-um", type=_positive, nargs="+", default=[2.0, 8.0, 16.0], metavar="UM")
    formats: tuple[Literal["btf", "deflate", "jpeg"], ...] = ("btf", "deflate", "jpeg")
    verb.add_argument("--image-format", choices=formats, default="btf")
    verb.add_argument("--turn", type=int, choices=[0, 90], default=0, help="turn the picture against the array")
    verb.add_argument("--landmarks", action="store_true", help="paint marks at 25 known bins, to test registration")


def _add_bench(verbs: _Verbs) -> None:
    verb = verbs.add("bench", _bench, "measure how fast a store streams")
    verb.add_argument("store", metavar="STORE")
    verb.add_argument("--patch-um", type=_positive, metavar="UM", help="default: 256 pixels or 16 spots")
    verb.add_argument("--stride-um", type=_positive, metavar="UM", help="default: the patch, or 4 spots")
    verb.add_argument("--mpp", type=_positive, metavar="UM", help="of the image (default: the store's finest level)")
    verb.add_argument("--bin-um", type=_positive, metavar="UM", help="of the gene grid (default: 8, or spots)")
    verb.add_argument("--genes", type=int, default=200, metavar="N", help="genes in the grid; 0: image only [200]")
    verb.add_argument("--batch-size", type=int, default=32, metavar="N")
    verb.add_argument("--seconds", type=_positive, default=10.0, metavar="S")
    verb.add_argument("--out", type=Path, metavar="FILE", help="append the result as a line of JSON")


if __name__ == "__main__":
    sys.exit(main())
