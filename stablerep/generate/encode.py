"""Pictures to files: by PIL on the host, or JPEG by nvImageCodec where they were painted.

nvImageCodec's files on a GPU have other bytes than PIL's (another Huffman coder and DCT), so which of them encodes is
part of what a dataset is; both write quality 95 with chroma halved both ways (4:2:0), PIL's own default.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import download

JPEG_QUALITY = 95
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
MEND = "pip install 'stablerep[jpeg]'"


@dataclass(frozen=True)
class EncodedPicture:
    """The file of one picture."""

    data: bytes
    height: int
    width: int


Encode = Callable[[Tensor], list[EncodedPicture]]  # [B, H, W, 3] uint8, anywhere

log = logging.getLogger("stablerep.generate")


def encode_picture(image: Tensor, image_format: str) -> bytes:
    """The file of one picture [H, W, 3] uint8 on the host."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, KINDS[image_format], quality=JPEG_QUALITY)
    return buffer.getvalue()


def to_file(picture: Tensor | EncodedPicture, image_format: str) -> EncodedPicture:
    """The file of a picture that may be one already."""
    if isinstance(picture, EncodedPicture):
        return picture
    return EncodedPicture(encode_picture(picture, image_format), picture.shape[0], picture.shape[1])


def decide_encoder(config: GenerateConfig, device: torch.device) -> GenerateConfig:
    """With `auto` nvImageCodec where it runs, else PIL; logged where only something missing is the reason.

    Raises:
        UserError: nvImageCodec is what it is to be, and it cannot run there.
    """
    asked = config.jpeg_encoder
    if asked == "pil" or (asked == "auto" and (config.image_format != "jpg" or device.type != "cuda")):
        return dataclasses.replace(config, jpeg_encoder="pil")
    reason = why_not_on_device(config.image_format, device)
    if reason and asked == "nvimgcodec":
        raise UserError(f"--jpeg-encoder nvimgcodec cannot run: {reason}")
    if reason:
        _log_once(f"JPEGs are encoded on the host: {reason}")
    return dataclasses.replace(config, jpeg_encoder="pil" if reason else "nvimgcodec")


@functools.cache
def _log_once(line: str) -> None:
    """Once, for all runs of a sweep."""
    log.info(line)


def why_not_on_device(image_format: str, device: torch.device) -> str | None:
    """Why nvImageCodec cannot encode there; found by encoding a picture."""
    if image_format != "jpg":
        return f"it writes no {image_format}"
    if device.type != "cuda":
        return "it needs a CUDA GPU; pil, for another --out, needs none"
    try:
        ImageCodec(device)(torch.zeros(1, 16, 16, 3, dtype=torch.uint8, device=device))
    except (ImportError, RuntimeError) as error:
        return f"{' '.join(str(error).split())[:200]}; {MEND}"
    return None


def open_encode(jpeg_encoder: str, image_format: str, device: torch.device) -> Encode:
    """What encodes batches on their way from that device."""
    return ImageCodec(device) if jpeg_encoder == "nvimgcodec" else HostEncode(image_format)


@dataclass(frozen=True)
class HostEncode:
    """The pixels come down, and PIL encodes them."""

    image_format: str

    def __call__(self, pixels: Tensor) -> list[EncodedPicture]:
        (pixels,) = download([pixels])
        return [to_file(picture, self.image_format) for picture in pixels]


class ImageCodec:
    """nvImageCodec's JPEG encoder for the pictures of one device: of what is painted only files come down.

    On the CPU it is libjpeg-turbo, which PIL is too: there its files have the bytes of PIL's.

    Raises:
        ImportError: the package is missing.
        RuntimeError: it cannot start there, or fails to encode.
    """

    def __init__(self, device: torch.device) -> None:
        from nvidia import nvimgcodec

        self._codec: Any = nvimgcodec
        self._device = device
        # Never both: a library that is missing would quietly move the work, and the bytes, to the other.
        kinds = (nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU) if device.type == "cuda" else (nvimgcodec.CPU_ONLY,)
        number = (device.index or 0) if device.type == "cuda" else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        self._encoder = nvimgcodec.Encoder(
            device_id=number, max_num_cpu_threads=1, backends=[nvimgcodec.Backend(kind) for kind in kinds]
        )
        self._settings = nvimgcodec.EncodeParams(
            quality_type=nvimgcodec.QualityType.QUALITY,
            quality_value=JPEG_QUALITY,
            chroma_subsampling=nvimgcodec.ChromaSubsampling.CSS_420,
        )

    def __call__(self, pixels: Tensor) -> list[EncodedPicture]:
        """Encode after what is queued on the current stream; waits for the files."""
        height, width = pixels.shape[1:3]
        stream = torch.cuda.current_stream(self._device).cuda_stream if pixels.is_cuda else 0
        arrays = [picture if pixels.is_cuda else picture.numpy() for picture in pixels]
        images = [self._codec.as_image(array, cuda_stream=stream) for array in arrays]
        streams = self._encoder.encode(images, "jpeg", params=self._settings, cuda_stream=stream)
        if any(each is None for each in streams):
            raise RuntimeError("nvImageCodec could not encode a picture; is its nvJPEG library installed?")
        return [EncodedPicture(bytes(each), height, width) for each in streams]
