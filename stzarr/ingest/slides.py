"""Plain slides: one picture and a pixel size, no expression."""

from __future__ import annotations

from pathlib import Path

from stzarr.errors import IngestError
from stzarr.ingest.image import is_image, open_image
from stzarr.ingest.pixelsize import PLAUSIBLE_UM, plausible
from stzarr.ingest.previews import picture_details
from stzarr.ingest.readers import ReadOptions, slide_id
from stzarr.space import Frame
from stzarr.store.source import ImageSource, Source


class SlideReader:
    """Reads a slide file: TIFF and its relatives, SVS, NDPI, JPEG, PNG."""

    name = "slides"

    def recognises(self, path: Path) -> bool:
        """Whether the file starts like a picture."""
        return is_image(path)

    def open(self, path: Path, options: ReadOptions) -> Source:
        """Open a slide lazily, in a frame whose µm run from the top left corner.

        Raises
        ------
        IngestError
            ST109: an option that a plain slide has no use for; ST119, ST127, ST128: see `open_image`; ST129: no pixel
            size in the file or in the options, or one that cannot be.
        """
        for option, value in (("--image", options.image), ("--bin-um", options.bins_um), ("--counts", options.counts)):
            if value is not None:
                what = f"{option} does not apply to a plain slide"
                raise IngestError("ST109", what, file=path, cure=f"leave out {option}, or give the run's outs/ folder")
        picture = open_image(path, options.max_decoded_bytes)
        mpp = picture.mpp if options.mpp_source is None else options.mpp_source
        if mpp is None or not plausible(mpp):
            picture.close()
            low, high = PLAUSIBLE_UM
            raise IngestError(
                "ST129",
                "the file does not say how many µm a pixel has"
                if mpp is None
                else f"a pixel of {mpp:g} µm is not that of a slide ({low:g} to {high:g} µm)",
                file=path,
                cure="--mpp-source 0.5",
            )
        frame = Frame.plain(mpp)
        return Source(
            id=slide_id(path, options.id),
            assay="slide",
            frame=frame,
            images=(ImageSource("full", picture, frame.um_to_px),),
            counts=(),
            files=(path,),
            details={
                "simulated": False,
                "mpp_from": "file" if options.mpp_source is None else "user",
                "images": picture_details({"full": picture}),
            },
        )
