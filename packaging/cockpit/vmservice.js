/* The page: the list of all VMs at #/, one of them at #/NAME, and above both what has failed. */

import cockpit from "./cockpit.js";
import { Detail } from "./detail.js";
import { element, setText } from "./dom.js";
import { List } from "./list.js";
import { Machines } from "./model.js";

const MOST_ALERTS = 5;

class Alerts {
    constructor(place) {
        this._place = place;
        this._open = []; // (what shows the sentence, the function that has it)
    }

    tell(title, sentence) {
        const text = element("p", {});
        const close = () => {
            this._open = this._open.filter(([, , one]) => one !== alert);
            alert.remove();
        };
        const alert = element("div", { class: "alert" },
            element("div", {}, element("strong", {}, title), text),
            element("button", { type: "button", class: "button link", "aria-label": `Close: ${title}`, onclick: close }, "Close"));
        this._open.push([text, sentence, alert]);
        this._place.append(alert);
        if (this._open.length > MOST_ALERTS)
            this._open.shift()[2].remove();
        this.update();
    }

    update() {
        for (const [text, sentence] of this._open)
            setText(text, sentence());
    }
}

/* Whether this session may act as root: null until it is known. Channels are opened once, so the page is loaded anew when a person
 * switches administrative access on or off. */
function followPrivileges() {
    const proxy = cockpit.dbus(null, { bus: "internal" }).proxy("cockpit.Superuser", "/superuser");
    const now = () => !proxy.valid || proxy.Current === "init" ? null : proxy.Current !== "none";
    let before = now();
    proxy.addEventListener("changed", () => {
        const after = now();
        if (before !== null && after !== null && before !== after)
            window.location.reload();
        before = after ?? before;
    });
    return () => before === true;
}

/* Cockpit's choice of light, dark or the browser's own; Cockpit keeps it there, and tells pages that are open. */
function followTheme() {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const apply = chosen => {
        const style = chosen ?? window.localStorage.getItem("shell:style") ?? "auto";
        document.documentElement.classList.toggle("dark", style === "dark" || (style === "auto" && dark.matches));
    };
    dark.addEventListener("change", () => apply());
    window.addEventListener("storage", event => { if (event.key === "shell:style") apply(); });
    window.addEventListener("cockpit-style", event => apply(event.detail?.style));
    apply();
}

function unreachable(problem, again) {
    return element("section", { class: "card empty" },
        element("h1", {}, "The virtual machines cannot be shown"),
        element("p", {}, `org.vmservice.Manager1, which knows them, does not answer on the system bus: ${problem}`),
        element("button", { type: "button", class: "button primary", onclick: again }, "Try again"));
}

class Page {
    constructor(place, alerts, privileged) {
        this._place = place;
        this._view = null;
        this._shown = null; // the name of the VM, "" for the list; null for neither
        this._frame = 0;
        this._machines = new Machines(() => this.changed());
        this._context = {
            privileged,
            changed: () => this.changed(),
            tell: (title, sentence) => alerts.tell(title, sentence),
        };
        this._alerts = alerts;
        cockpit.addEventListener("locationchanged", () => this.changed());
        this._machines.open();
    }

    /* Shows what is known now, once a frame however many signals there were. */
    changed() {
        this._frame ||= requestAnimationFrame(() => {
            this._frame = 0;
            this._update();
        });
    }

    _update() {
        const { problem, loaded } = this._machines;
        if (problem !== null)
            return this._open(null, () => ({ element: unreachable(problem, () => this._machines.open()), update() {}, close() {} }));
        if (!loaded)
            return;
        const name = cockpit.location.path[0] ?? "";
        if (name !== this._shown)
            this._open(name, () => name === "" ? new List(this._context) : new Detail(this._context, name));
        this._view.update(this._machines);
        this._alerts.update();
    }

    _open(name, make) {
        this._view?.close();
        this._shown = name;
        this._view = make();
        this._place.replaceChildren(this._view.element);
    }
}

followTheme();
cockpit.transport.wait(() => {
    new Page(document.getElementById("page"), new Alerts(document.getElementById("alerts")), followPrivileges());
});
