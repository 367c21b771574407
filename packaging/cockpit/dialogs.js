/* Small dialogs, each of one form. The browser's own <dialog> keeps the focus in it, and Escape closes it. */

import { element } from "./dom.js";

let last = 0;

/* Opens a dialog; `submit` is called with `read()` when it is confirmed. What comes of it is shown on the page. */
function open(title, kind, verb, content, read, submit) {
    const id = `dialog-${last += 1}`;
    const form = element("form", { method: "dialog" },
        element("h2", { id }, title),
        ...content,
        element("div", { class: "actions" },
            element("button", { type: "submit", class: `button ${kind}` }, verb),
            element("button", { type: "button", class: "button link", onclick: () => dialog.close() }, "Cancel")));
    const dialog = element("dialog", { "aria-labelledby": id, onclose: () => dialog.remove() }, form);
    form.addEventListener("submit", event => {
        event.preventDefault();
        const answer = read();
        dialog.close();
        submit(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
}

/* Calls `submit` with the number of vCPUs that the VM shall have. The form refuses what is out of range. */
export function askCount(vm, submit) {
    const most = vm.own.MaxVCPUs;
    const input = element("input", {
        id: "count", type: "number", min: "1", max: String(most), step: "1", required: "", value: String(vm.own.VCPUs),
        "aria-describedby": "count-help",
    });
    const content = [
        element("label", { for: "count" }, "vCPUs"),
        input,
        element("p", { id: "count-help", class: "help" },
            `1 to ${most}. The guest brings them online or gives them back; it has 20 seconds for that.`),
    ];
    open(`Resize ${vm.name}`, "primary", "Resize", content, () => input.valueAsNumber, submit);
    input.select();
}

/* Calls `submit` when a person is sure. */
export function askConfirmation(verb, vm, text, submit) {
    open(`${verb} ${vm.name}?`, "danger", verb, [element("p", {}, text)], () => undefined, submit);
}
