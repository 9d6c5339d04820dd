// Put each figure before the code that draws it, and fold the code.
for (const code of document.querySelectorAll("div.highlight-Python:has(+ img)")) {
  if (!/^(import matplotlib|figure|COLORS)/.test(code.textContent.trim())) continue; // the code also computes something
  const folded = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Code of the figure";
  code.nextElementSibling.after(folded);
  folded.append(summary, code);
}
// On a phone, a figure keeps its text size and scrolls.
for (const image of document.querySelectorAll("article img:not(.sphx-glr-thumbcontainer *)")) {
  const box = document.createElement("div");
  box.className = "figure";
  image.before(box);
  box.append(image);
}
