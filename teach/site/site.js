// What furo leaves open for who uses a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  const set = (what, name, value) => document.querySelectorAll(what).forEach((each) => each.setAttribute(name, value));
  set(".caption[role=heading]", "aria-level", 2);
  set(".sidebar-drawer", "aria-label", "all pages");
  if (!document.querySelector("h1")) document.querySelector("article").insertAdjacentHTML("afterbegin", "<h1>Search</h1>");
  set(".toc-drawer", "aria-label", "this page");
  // What is wider than its box is a stop of the Tab key, where arrow keys scroll it. Nothing else is.
  const stops = () => document.querySelectorAll("pre, .table-wrapper, .output").forEach((box) => {
    box.scrollWidth > box.clientWidth ? box.tabIndex = 0 : box.removeAttribute("tabindex");
  });
  stops();
  addEventListener("resize", stops);
});
