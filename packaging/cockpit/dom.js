/* Elements are made here and filled as text only. Names, reasons and log lines come from guests and from other programs: nothing
 * on this page is ever parsed as HTML. */

/* An element with attributes, listeners (`onclick: function`) and children: elements and strings, which become text. */
export function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
        if (typeof value === "function")
            made.addEventListener(name.slice(2), value);
        else
            made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
}

/* Leaves an element alone that says so already: what a person has selected in it stays selected. */
export function setText(target, text) {
    if (target.textContent !== text)
        target.textContent = text;
}

/* "512 MiB": in powers of 1024, as the configuration has them. */
export function size(bytes) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let value = bytes;
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${Number(value.toFixed(value < 10 ? 1 : 0))} ${units[unit]}`;
}
