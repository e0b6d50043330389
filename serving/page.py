"""The page at /: the model in service, and a form to try an image. It loads nothing from other servers."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from string import Template

from serving.deployment import State

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>medloop</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
  h1 { margin-bottom: 0; }
  form { display: flex; gap: .75rem; flex-wrap: wrap; margin: 1.5rem 0; }
  dl { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem 1rem; align-items: center; }
  dd { margin: 0; } meter { width: 100%; }
  .warning { border-left: 4px solid #c60; padding-left: .75rem; }
  code { background: #8882; padding: 0 .25em; border-radius: 3px; }
</style>
<h1>medloop</h1>
<p>$summary</p>
$warning
<form>
  <input type="file" name="file" aria-label="image" accept=".png,.jpg,.jpeg,.dcm,image/png,image/jpeg,application/dicom"
    required>
  <button>Predict</button>
</form>
<p id="result" role="status"></p>
<dl id="classes"></dl>
<h2>API</h2>
<ul>
  <li><code>POST /predict</code> with the form field <code>file</code>; <code>return_features</code> adds features</li>
  <li><code>POST /predict/batch</code> with several <code>files</code></li>
  <li><a href="model/info">/model/info</a>, <a href="health">/health</a>,
    <a href="openapi.json">/openapi.json</a> (description of the API)</li>
</ul>
<script>
  const result = document.getElementById("result"), classes = document.getElementById("classes");
  const make = (tag, text) => Object.assign(document.createElement(tag), {textContent: text});
  document.forms[0].addEventListener("submit", async (event) => {
    event.preventDefault();
    classes.replaceChildren();
    result.textContent = "…";
    try {
      const response = await fetch("predict", {method: "POST", body: new FormData(event.target)});
      const body = await response.json();
      if (!response.ok) { result.textContent = body.detail; return; }
      const prediction = [body.prediction].flat().join(", ") || "none of the findings";
      result.textContent = `$${prediction} ($${body.model_version}, $${body.inference_time_ms} ms)`;
      if (typeof body.threshold === "number")
        result.textContent += `; $${body.positive} is predicted from $${(100 * body.threshold).toFixed(1)} % on`;
      for (const [name, p] of Object.entries(body.probabilities)) {
        const bar = document.createElement("dd");
        bar.append(Object.assign(document.createElement("meter"), {value: p}));
        classes.append(make("dt", name), bar, make("dd", `$${(100 * p).toFixed(1)} %`));
      }
    } catch { result.textContent = "The service did not respond."; }
  });
</script>
</html>
""")


def render(state: State) -> str:
    """Return the page as HTML."""
    serving = state.serving
    if serving:
        about = serving.info()
        released = datetime.fromisoformat(about["released_at"]).astimezone(UTC)
        summary = (
            f"Version <strong>{escape(serving.version)}</strong> is in service: {escape(str(about['architecture']))}, "
            f"{escape(about['precision'])}, released {released:%Y-%m-%d %H:%M} UTC; "
            f"classes: {escape(', '.join(about['classes']))}."
        )
    else:
        summary = "No model is in service."
    warning = f'<p class="warning">{escape(state.problem)}</p>' if state.problem else ""
    return PAGE.substitute(summary=summary, warning=warning)
