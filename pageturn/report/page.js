"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-chart]")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const options = { responsive: true, displaylogo: false, displayModeBar: false };

  // The page's colours, as the style sheet has them for the present scheme.
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = {
      gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("strong-line"),
      tickfont: { color: colour("soft") }, title: { font: { color: colour("soft"), size: 12 }, standoff: 8 },
    };
    const font = { color: colour("text"), family: style.getPropertyValue("--font"), size: 12 };
    return { layout: {
      font, colorway: [colour("text")], paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("strong-line"), font },
      legend: { font: { color: colour("soft") } },
    } };
  };

  const draw = () => {
    const template = theme();
    for (const place of places) {
      const { data, layout } = figures[place.dataset.chart];
      Plotly.react(place, data, { ...layout, template }, options);
    }
  };

  draw();
  dark.addEventListener("change", draw);
})();
