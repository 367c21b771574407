/* The journal of a VM: its VMM's lines, its guest's, and systemd's about its unit; the last ones, then each one as it comes. */

import cockpit from "./cockpit.js";
import { element } from "./dom.js";

const FIRST_LINES = 200;
const KEPT_LINES = 1000;
const LIMITED = "Not everything is shown: administrators and members of the groups systemd-journal and adm may read the whole journal.";

/* A field of an entry as text. journalctl writes one that is not UTF-8 as a list of its bytes, and one that is there several times
 * as a list of all. */
function text(field) {
    if (!Array.isArray(field))
        return field ?? "";
    if (field.every(byte => typeof byte === "number"))
        return new TextDecoder().decode(Uint8Array.from(field));
    return field.map(text).join("\n");
}

/* Who says it: a console's label, the VMM or systemd. As journald itself notes it; VM_CONSOLE only names the guest's console. */
function source(entry) {
    if (entry.VM_CONSOLE !== undefined)
        return `guest, ${text(entry.VM_CONSOLE)}`;
    return text(entry.SYSLOG_IDENTIFIER) === "systemd" ? "systemd" : "vmservice";
}

function time(entry) {
    return new Date(Number(entry.__REALTIME_TIMESTAMP) / 1000);
}

export class Log {
    constructor(vm) {
        this._waiting = "";  // the begin of a line whose end has not come
        this._rows = [];     // to be shown in the next frame
        this._frame = 0;
        this._closed = false;
        this._body = element("tbody", {});
        this._scroller = element("div", { class: "log", tabindex: "0", role: "region", "aria-label": `Log of ${vm.name}` },
            element("table", {},
                element("thead", {},
                    element("tr", {}, ...["Time", "From", "Message"].map(title => element("th", { scope: "col" }, title)))),
                this._body));
        const choice = element("select", { id: "log-choice", onchange: () => { this._scroller.dataset.show = choice.value; } },
            element("option", { value: "all" }, "everything"),
            element("option", { value: "guest" }, "the guest"),
            element("option", { value: "host" }, "vmservice and systemd"));
        this.element = element("section", { class: "card wide" },
            element("div", { class: "card-head" },
                element("h2", {}, "Log"),
                element("label", { for: "log-choice" }, "Show"),
                choice),
            this._scroller);
        this._process = cockpit.spawn(this._command(vm.unit), { superuser: "try", err: "out" });
        this._process.stream(data => this._take(data));
        this._process.then(() => this._end("journalctl has ended"), error => this._end(error.message || cockpit.message(error)));
        this._askWhetherAll();
    }

    close() {
        this._closed = true;
        cancelAnimationFrame(this._frame);
        this._process.close("cancelled");
    }

    _command(unit) {
        return [
            "journalctl", "--follow", "--all", `--lines=${FIRST_LINES}`, "--output=json",
            "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,VM_CONSOLE",
            `_SYSTEMD_UNIT=${unit}`, "+", `UNIT=${unit}`, "_PID=1",
        ];
    }

    /* With its output in JSON journalctl does not say that somebody may not read all. */
    _askWhetherAll() {
        const told = output => {
            if (output?.includes("Hint: "))
                this._note(LIMITED);
        };
        cockpit.spawn(["journalctl", "--lines=0"], { superuser: "try", err: "out" }).then(told, (_error, output) => told(output));
    }

    _take(data) {
        const lines = (this._waiting + data).split("\n");
        this._waiting = lines.pop();
        for (const line of lines.filter(line => line !== ""))
            this._rows.push(line);
        this._show();
    }

    _end(reason) {
        this._note(`The log is not followed any longer: ${reason}`);
    }

    _note(sentence) {
        if (this._closed)
            return;
        this._rows.push(sentence);
        this._show();
    }

    /* In the next frame, and only what will be kept: a guest may print more than a browser can show, and a page that is hidden has
     * no frames. */
    _show() {
        if (this._rows.length > 2 * KEPT_LINES)
            this._rows = this._rows.slice(-KEPT_LINES);
        if (this._frame !== 0)
            return;
        this._frame = requestAnimationFrame(() => {
            this._frame = 0;
            const box = this._scroller;
            const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
            this._body.append(...this._rows.splice(0).slice(-KEPT_LINES).map(line => this._row(line)));
            while (this._body.childElementCount > KEPT_LINES)
                this._body.firstElementChild.remove();
            if (atEnd)
                box.scrollTop = box.scrollHeight;
        });
    }

    /* What is no entry is journalctl's own word, or ours. */
    _row(line) {
        if (!line.startsWith("{"))
            return element("tr", { class: "note" }, element("td", { colspan: "3" }, line));
        const entry = JSON.parse(line);
        const from = source(entry);
        const severe = entry.VM_CONSOLE === undefined && Number(entry.PRIORITY) <= 4;
        const classes = `${from.startsWith("guest") ? "guest" : "host"}${severe ? " severe" : ""}`;
        const at = time(entry);
        return element("tr", { class: classes },
            element("td", {}, element("time", { datetime: at.toISOString(), title: at.toLocaleString() }, at.toLocaleTimeString())),
            element("td", {}, from),
            element("td", {}, text(entry.MESSAGE)));
    }
}
