// Browsers start no worker from a page that is read from the disk (file:). The search needs one. This script gives such
// pages a `Worker` that runs the same file in a hidden frame; pages from a server keep the browser's own.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      this.receive = (event) => {
        if (event.source !== inside) return;
        event.stopImmediatePropagation();
        const message = new MessageEvent("message", { data: event.data });
        this.onmessage?.(message);
        this.dispatchEvent(message);
      };
      window.addEventListener("message", this.receive);
      this.ready = new Promise((done) => {
        inside.addEventListener("load", done);
        this.frame.addEventListener("load", done);
      });
      inside.document.open();
      inside.document.write(
        "<body><script>window.postMessage = (data) => parent.postMessage(data, '*')</" + "script>" +
        `<script src="${url}"></` + "script></body>",
      );
      inside.document.close();
    }
    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })),
      );
    }
    terminate() {
      window.removeEventListener("message", this.receive);
      this.frame.remove();
    }
  };
}
