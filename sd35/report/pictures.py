"""Pictures inside a page."""

from base64 import b64encode
from io import BytesIO

from PIL import Image

from .html import Html, tag


def image(picture: Image.Image, text: str, *, lossless: bool = False, class_: str | None = None) -> Html:
    """An <img> that carries its file in its address.

    Args:
        picture: what to show.
        text: what it shows, for those who do not see it.
        lossless: PNG, rather than JPEG at a tenth of the size.
        class_: of the element.
    """
    file, kind = BytesIO(), "png" if lossless else "jpeg"
    if lossless:
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.convert("RGB").save(file, format="JPEG", quality=88)
    address = f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
    return tag("img", src=address, alt=text, width=picture.width, height=picture.height, class_=class_)
