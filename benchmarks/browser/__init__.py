"""From a click in a real browser to the first token on its page.

`python -m benchmarks.browser` (or `make bench-browser`) opens `examples/browser/index.html` in a headless
Chromium and clicks its button with the mouse, over server-sent events and over a WebSocket; then it asks the
same of the same fleet without a browser, over connections that are kept open like the browser's.

- `chromium`  the browser and its pages
- `serving`   a web server for the page
- `plain`     the same requests without a browser
"""
