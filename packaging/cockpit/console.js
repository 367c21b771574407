/* A console of a VM to type at: `vmservice console` in a terminal of its own, shown as text. */

import cockpit from "./cockpit.js";
import { element, setText } from "./dom.js";
import { Screen } from "./screen.js";

const KEYS = {
    Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~", Home: "\x1b[H", End: "\x1b[F",
    ArrowUp: "\x1b[A", ArrowDown: "\x1b[B", ArrowRight: "\x1b[C", ArrowLeft: "\x1b[D",
};

/* What a key sends to the guest; empty for one that is the browser's, or is a character, which comes as input. */
function bytesOf(event, selected) {
    if (event.isComposing || event.altKey || event.metaKey || event.shiftKey)
        return "";
    if (!event.ctrlKey)
        return KEYS[event.key] ?? "";
    // Ctrl-C copies what is selected, and Ctrl-V pastes, as everywhere in the browser.
    if (event.key === "v" || (event.key === "c" && selected))
        return "";
    return /^[a-z[\\\]]$/.test(event.key) ? String.fromCharCode(event.key.toUpperCase().charCodeAt(0) & 0x1f) : "";
}

/* The card of one VM. Nobody is connected before they ask for it: one person at a time can be at a console. */
export class Console {
    constructor() {
        this._vm = null;
        this._process = null;
        this._frame = 0;
        this._choice = element("select", { "aria-label": "Console" });
        this._button = element("button", { type: "button", class: "button secondary", onclick: () => this._toggle() }, "Connect");
        this._none = element("p", { class: "help" });
        this._terminal = element("textarea", {
            class: "terminal", rows: "16", spellcheck: "false", autocomplete: "off", autocapitalize: "off", wrap: "off",
            "aria-describedby": "console-help", onkeydown: event => this._key(event), onbeforeinput: event => this._input(event),
            oncompositionend: event => this._send(event.data), oninput: () => this._draw(),
        });
        this._help = element("p", { class: "help", id: "console-help" },
            "What you type goes to the guest; Shift+Tab leaves the terminal. It shows plain text: full-screen programs such as editors ",
            "need “vmservice console” in a real one.");
        this.element = element("section", { class: "card wide" },
            element("div", { class: "card-head" }, element("h2", {}, "Console"), this._choice, this._button),
            this._none, this._terminal, this._help);
        this._terminal.hidden = true;
        this._help.hidden = true;
    }

    update(vm) {
        this._vm = vm;
        const open = vm.consoles.filter(one => ["pty", "socket"].includes(one.mode));
        const names = open.map(one => one.name);
        if (names.join() !== [...this._choice.options].map(option => option.value).join())
            this._choice.replaceChildren(...names.map(name => element("option", {}, name)));
        this._choice.hidden = names.length < 2;
        this._button.hidden = names.length === 0 && this._process === null;
        this._none.hidden = names.length > 0;
        setText(this._none, this._whyNone(vm));
    }

    close() {
        cancelAnimationFrame(this._frame);
        this._process?.close("terminated");
        this._process = null;
    }

    _whyNone(vm) {
        if (!vm.runs)
            return "The VM does not run.";
        const modes = vm.consoles.map(one => `${one.name} is in mode “${one.mode}”`).join(", ");
        return `Nobody can type at a console of this VM${modes && `: ${modes}`}. What the guest prints is in the log if it goes to the `
            + "journal. Both at once are mode = \"socket\" and log = \"journal\" in section [serial] of its configuration.";
    }

    _toggle() {
        if (this._process !== null) {
            this.close();
            this._ended("Not connected any longer.");
        } else {
            this._connect();
        }
    }

    _connect() {
        const screen = new Screen();
        const decoder = new TextDecoder();
        const process = cockpit.spawn(["vmservice", "console", this._vm.name, this._choice.value], {
            pty: true, binary: true, superuser: "try", window: { rows: 24, cols: 80 },
        });
        this._screen = screen;
        this._process = process;
        process.stream(data => {
            screen.write(decoder.decode(data, { stream: true }));
            this._draw();
        });
        const over = () => {
            if (this._process === process) {
                this._process = null;
                this._ended("The connection has ended.");
            }
        };
        process.then(over, over);
        this._terminal.setAttribute("aria-label", `Console ${this._choice.value} of ${this._vm.name}`);
        this._terminal.value = "";
        this._terminal.hidden = false;
        this._terminal.readOnly = false;
        this._help.hidden = false;
        setText(this._button, "Disconnect");
        this._terminal.focus();
    }

    _ended(sentence) {
        this._screen.write(`\r\n${sentence}\r\n`);
        this._terminal.readOnly = true;
        setText(this._button, "Connect");
        this._draw();
        this.update(this._vm);
    }

    /* In the next frame; what a person has selected stays so. */
    _draw() {
        this._frame ||= requestAnimationFrame(() => {
            this._frame = 0;
            const box = this._terminal;
            const { selectionStart, selectionEnd } = box;
            const selected = selectionStart !== selectionEnd;
            box.value = this._screen.text;
            if (selected) {
                box.setSelectionRange(selectionStart, selectionEnd);
            } else {
                box.setSelectionRange(this._screen.cursor, this._screen.cursor);
                box.scrollTop = box.scrollHeight;
            }
        });
    }

    _key(event) {
        const box = this._terminal;
        const bytes = bytesOf(event, box.selectionStart !== box.selectionEnd);
        if (bytes === "" || this._process === null)
            return;
        event.preventDefault();
        this._send(bytes);
    }

    /* A character, or a text that is pasted. The guest decides what is shown of it. */
    _input(event) {
        if (event.isComposing)
            return;
        event.preventDefault();
        this._send(event.data ?? event.dataTransfer?.getData("text/plain") ?? "");
    }

    _send(text) {
        if (text !== "")
            this._process?.input(new TextEncoder().encode(text.replace(/\r?\n/g, "\r")), true);
    }
}
