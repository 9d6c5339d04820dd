// A figure comes before the code that draws it, and that code is folded.
for (const code of document.querySelectorAll("div.highlight-Python:has(+ img)")) {
  if (!/^(import matplotlib|figure|COLORS)/.test(code.textContent.trim())) continue; // it computes something, too
  const folded = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Code of the figure";
  code.nextElementSibling.after(folded);
  folded.append(summary, code);
}
