// What furo leaves open for who uses a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  const set = (what, name, value) => document.querySelectorAll(what).forEach((each) => each.setAttribute(name, value));
  set("pre, .table-wrapper, .output", "tabindex", 0); // what is wider than the page is scrolled by arrow keys
  set(".caption[role=heading]", "aria-level", 2);
  set(".sidebar-drawer", "aria-label", "all pages");
  if (!document.querySelector("h1")) document.querySelector("article").insertAdjacentHTML("afterbegin", "<h1>Search</h1>");
  set(".toc-drawer", "aria-label", "this page");
});
