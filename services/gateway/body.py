"""Reading a request's body within its limit."""

from aiohttp import web

from shared.errors import InvalidRequest, PromptTooLarge


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body of a JSON request, decompressed. aiohttp's own `read` would keep it for as long as the request."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise InvalidRequest(
            f"The content type must be application/json, got {request.headers.get('Content-Type', 'none')!r:.100}.",
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        while chunk := await request.content.readany():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"The body cannot be read: {' '.join(str(error).split())}.") from None
    return b"".join(chunks)


def _too_large(limit: int) -> PromptTooLarge:
    return PromptTooLarge(f"The body is larger than {limit} bytes.")
