"use strict";

// The key is the one that was typed into the playground in this tab.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  requestInterceptor(request) {
    const key = sessionStorage.getItem("covervlm-key");
    const own = new URL(request.url, location.href).origin === location.origin;
    if (key && own) request.headers.Authorization ??= `Bearer ${key}`;
    return request;
  },
});
