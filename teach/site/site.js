// What the theme leaves out, for readers without a mouse or without sight.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer").ariaLabel = "Pages of the site";
  document.querySelector(".toc-drawer").ariaLabel = "Contents of this page";
  document.querySelector("#search-results")?.insertAdjacentHTML("beforebegin", "<h1>Search</h1>");
  // Only what has more than it shows is a stop of the Tab key, so that arrow keys can scroll it.
  const reach = () => document.querySelectorAll("pre, .cell_output, .table-wrapper").forEach((box) => {
    box.scrollWidth > box.clientWidth ? box.tabIndex = 0 : box.removeAttribute("tabindex");
  });
  reach();
  addEventListener("resize", reach);
});
