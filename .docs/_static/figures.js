// Figures wait as JSON in the page; each is drawn when it comes near the window.
const config = { displaylogo: false, responsive: true };
const observer = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      const figure = JSON.parse(target.textContent);
      target.textContent = "";
      Plotly.newPlot(target, { ...figure, config });
    }
  },
  { rootMargin: "300px" },
);
document.querySelectorAll("div.figure > div").forEach((box) => observer.observe(box));
