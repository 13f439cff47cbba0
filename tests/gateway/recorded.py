"""What clients and engines in use send, byte for byte."""

from __future__ import annotations

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'

REQUESTS = {
    "openai-python": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Connection: keep-alive\r\nauthorization: Bearer sk\r\naccept: application/json\r\n"
        b"content-type: application/json\r\nuser-agent: OpenAI/Python 3.52.0\r\nx-stainless-lang: python\r\n"
        b"x-stainless-package-version: 3.52.0\r\nx-stainless-os: Linux\r\nx-stainless-arch: x64\r\n"
        b"x-stainless-runtime: CPython\r\nx-stainless-runtime-version: 3.11.7\r\nx-stainless-async: false\r\n"
        b"x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\nContent-Length: 57\r\n\r\n" + CHAT
    ),
    "openai-python, a recording to be transcribed": (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Connection: keep-alive\r\nauthorization: Bearer sk\r\naccept: application/json\r\n"
        b"user-agent: OpenAI/Python 3.52.0\r\nContent-Length: 263\r\n"
        b"Content-Type: multipart/form-data; boundary=fd808f75c498981457e85633a1042694\r\n\r\n"
        b'--fd808f75c498981457e85633a1042694\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--fd808f75c498981457e85633a1042694\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/x-wav\r\n\r\nRIFF\r\n\x00\xff\r\n--fd808f75c498981457e85633a1042694--\r\n"
    ),
    "curl": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nContent-Length: 57\r\n\r\n" + CHAT
    ),
    "curl, chunked": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n39\r\n" + CHAT + b"\r\n0\r\n\r\n"
    ),
    "curl, HTTP/1.0": (
        b"POST /v1/chat/completions HTTP/1.0\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nContent-Length: 57\r\n\r\n" + CHAT
    ),
    "Open WebUI": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer \r\nX-OpenWebUI-User-Name: Zo%C3%AB\r\nX-OpenWebUI-User-Id: u-1\r\n"
        b"X-OpenWebUI-User-Email: z@x\r\nX-OpenWebUI-User-Role: user\r\nX-OpenWebUI-Chat-Id: c-1\r\nAccept: */*\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14.5\r\nContent-Length: 27\r\n\r\n"
        b'{"model":"m","stream":true}'
    ),
    "Open WebUI, its poll": (
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer \r\nAccept: */*\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14.5\r\n\r\n"
    ),
    "a browser": (
        b"POST /v1/completions?x=%20y HTTP/1.1\r\nHost: localhost:8000\r\nConnection: keep-alive\r\n"
        b'Content-Length: 57\r\nsec-ch-ua-platform: "Linux"\r\n'
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like "
        b'Gecko) Chrome/140.0.0.0 Safari/537.36\r\nsec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"\r\n'
        b"Content-Type: application/json\r\nsec-ch-ua-mobile: ?0\r\nAccept: */*\r\nOrigin: http://localhost:3000\r\n"
        b"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"
        b"Referer: http://localhost:3000/\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        b"Accept-Language: en-GB,en;q=0.9\r\nCookie: token=a; theme=dark\r\n\r\n" + CHAT
    ),
}

_EVENTS = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"h\xc3\xa9"}}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n',
    b"data: [DONE]\n\n",
)

RESPONSES = {
    "vLLM": (
        b"HTTP/1.1 200 OK\r\ndate: Fri, 21 Nov 2025 11:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 27\r\n"
        b'content-type: application/json\r\n\r\n{"id":"c","object":"model"}'
    ),
    "vLLM, a stream": (
        b"HTTP/1.1 200 OK\r\ndate: Fri, 21 Nov 2025 11:00:00 GMT\r\nserver: uvicorn\r\n"
        b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in _EVENTS)
        + b"0\r\n\r\n"
    ),
    "an error": (
        b"HTTP/1.1 400 Bad Request\r\nserver: uvicorn\r\ncontent-length: 33\r\ncontent-type: application/json\r\n\r\n"
        b'{"error":{"message":"too long"}}\n'
    ),
    "nothing": b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nserver: uvicorn\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 70\r\n\r\n",
    "one connection each": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde",
    "without a reason": b"HTTP/1.1 299 \r\nContent-Length: 1\r\n\r\nx",
    "chunks, extensions, trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: audio/wav\r\n\r\n"
        b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n1\r\n\r\r\n0;last\r\nX-Sum: 1\r\n\r\n"
    ),
}
