// The map of the embeddings: one SVG path a label, drawn anew for another task; what is near the pointer is told.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 640;
  const HEIGHT = 480;
  const RADIUS = 3;
  const SHAPES = [
    (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    (x, y, r) => `M${x} ${y - 1.2 * r}l${1.2 * r} ${2.1 * r}h${-2.4 * r}z`,
    (x, y, r) => `M${x - 0.9 * r} ${y - 0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  ];

  const element = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  const onPaper = (points) => {
    const [lows, highs] = [Math.min, Math.max].map((end) => [0, 1].map((axis) => end(...points.map((p) => p[axis]))));
    const scale = Math.min((WIDTH - 20) / (highs[0] - lows[0] || 1), (HEIGHT - 20) / (highs[1] - lows[1] || 1));
    const place = (value, axis, side) => side / 2 + (value - (lows[axis] + highs[axis]) / 2) * scale;
    const rounded = (value) => Math.round(value * 10) / 10;
    return points.map(([x, y]) => [rounded(place(x, 0, WIDTH)), rounded(HEIGHT - place(y, 1, HEIGHT))]);
  };

  const show = (block) => {
    const data = JSON.parse(block.querySelector(".map-data").textContent);
    const find = (name) => block.querySelector(`.map-${name}`);
    const [tasks, labels, plane, legend, readout] = ["task", "label", "plane", "legend", "readout"].map(find);
    const [names, colours, shapes] = ["names", "colours", "shapes"].map((key) => Number(block.dataset[key]));
    const places = onPaper(data.points);
    let current = 0;

    const colour = (label) => (label < 0 ? "var(--none)" : `var(--colour-${label % colours})`);
    const shape = (label) => SHAPES[label < 0 ? 0 : Math.floor(label / colours) % shapes];
    const task = () => data.tasks[tasks.value];
    const chosen = () => (labels.value === "" ? null : Number(labels.value));
    const name = (label) => (label < 0 ? "no label" : task().labels[label]);

    const ordered = () => {
      const counts = new Map();
      for (const label of task().of_point) counts.set(label, (counts.get(label) || 0) + 1);
      return [...counts].sort(([a, m], [b, n]) => (a < 0) - (b < 0) || n - m || a - b);
    };

    const draw = () => {
      const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0 });
      svg.setAttribute("aria-label", `Map of ${places.length} sentences by their ${tasks.value}; arrow keys go from one to the next`);
      for (const [label] of ordered().reverse()) {
        const d = places.filter((_, point) => task().of_point[point] === label).map(([x, y]) => shape(label)(x, y, RADIUS));
        const isFaint = chosen() !== null && chosen() !== label;
        svg.append(element("path", { d: d.join(""), fill: colour(label), "fill-opacity": isFaint ? 0.08 : 0.8, "data-label": label }));
      }
      const ring = element("circle", { r: 2.2 * RADIUS, class: "ring", visibility: "hidden" });
      svg.append(ring);
      plane.replaceChildren(svg);

      const tell = (point) => {
        current = point;
        const [x, y] = places[point];
        for (const [key, value] of [["cx", x], ["cy", y], ["visibility", "visible"]]) ring.setAttribute(key, value);
        const label = document.createElement("strong");
        label.textContent = name(task().of_point[point]);
        readout.replaceChildren(label, ` ${data.texts[point]}`);
      };
      svg.addEventListener("pointermove", (event) => {
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        let nearest = null;
        let least = (6 * RADIUS) ** 2;
        places.forEach(([x, y], point) => {
          const far = (x - at.x) ** 2 + (y - at.y) ** 2;
          if (far < least && (chosen() === null || task().of_point[point] === chosen())) [nearest, least] = [point, far];
        });
        if (nearest !== null) tell(nearest);
      });
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const count = places.length;
        for (let tried = 0, next = current; tried < count; tried += 1) {
          next = (next + step + count) % count;
          if (chosen() === null || task().of_point[next] === chosen()) return tell(next);
        }
      });
    };

    const drawLegend = () => {
      const known = ordered().filter(([label]) => label >= 0);
      const list = document.createElement("ul");
      for (const [label, count] of known.slice(0, names)) {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", chosen() === label);
        const mark = element("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": true });
        mark.append(element("path", { d: shape(label)(6, 6, 5), fill: colour(label) }));
        button.append(mark, ` ${name(label)} (${count})`);
        button.addEventListener("click", () => {
          labels.value = chosen() === label ? "" : String(label);
          drawBoth();
          legend.querySelectorAll("button")[known.findIndex(([other]) => other === label)].focus();
        });
        item.append(button);
        list.append(item);
      }
      legend.replaceChildren(list);
      if (known.length > names) {
        const note = document.createElement("p");
        note.textContent = `The ${names} most frequent of ${known.length} labels`;
        if (Math.max(...known.map(([label]) => label)) >= colours * shapes) note.textContent += "; colours and shapes repeat";
        note.append(".");
        legend.append(note);
      }
    };

    const drawBoth = () => {
      draw();
      drawLegend();
    };

    const chooseTask = () => {
      const options = ordered().map(([label]) => new Option(name(label), label));
      labels.replaceChildren(new Option("all labels", ""), ...options);
      readout.textContent = "Point at a sentence to read it.";
      drawBoth();
    };

    tasks.addEventListener("change", chooseTask);
    labels.addEventListener("change", drawBoth);
    for (const part of block.querySelectorAll("[hidden]")) part.hidden = false;
    chooseTask();
  };

  document.querySelectorAll(".map").forEach(show);
})();
