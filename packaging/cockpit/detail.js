/* One VM: what it is, its devices, its console and its log. */

import { ActionBar } from "./actions.js";
import { Console } from "./console.js";
import cockpit from "./cockpit.js";
import { element, setText, size } from "./dom.js";
import { StateLabel, vcpus } from "./list.js";
import { Log } from "./log.js";
import { plainText } from "./model.js";

/* What is said of a VM, in this order; what is empty is not shown. */
const FACTS = [
    ["vCPUs", vcpus],
    ["Memory", vm => vm.own.Memory === undefined ? "" : size(vm.own.Memory)],
    ["Guest", vm => vm.own.GuestReady === undefined ? "" : vm.own.GuestReady ? "ready" : "not ready yet"],
    ["Last exit", vm => vm.own.LastExit ?? ""],
    ["Reason", vm => vm.reason],
    ["Configuration", vm => vm.configured ? `/etc/vmservice/${vm.name}.toml` : "none: it cannot be started anew"],
    ["Bus name", vm => vm.known.BusName ?? ""],
];

function unitState(vm) {
    const { active, known: { SubState: more } } = vm;
    return more && more !== active ? `${active} (${more})` : active;
}

/* "mode socket, path /run/…": the details of a device. */
function details(values) {
    return Object.entries(values).map(([name, value]) => `${name} ${plainText(value)}`).join(", ");
}

export class Detail {
    constructor(context, name) {
        this._name = name;
        this._log = null;
        this._shown = ""; // the devices that are in the table
        this._state = new StateLabel();
        this._actions = new ActionBar(context, true);
        this._console = new Console();
        this._unit = element("button", { type: "button", class: "button link", onclick: () => this._openUnit() });
        this._unitState = element("span", {});
        this._facts = FACTS.map(([title, value]) => [element("dt", {}, title), element("dd", {}), value]);
        this._devices = element("tbody", {});
        this._gone = element("p", { class: "empty" }, "There is no virtual machine of this name.");
        this._cards = element("div", { class: "cards" }, this._overview(), this._deviceCard(), this._console.element);
        this.element = element("div", {},
            element("nav", { "aria-label": "Breadcrumb", class: "breadcrumb" },
                element("a", { href: "#/" }, "Virtual machines"),
                element("span", { "aria-current": "page" }, name)),
            element("div", { class: "title" }, element("h1", {}, name), this._state.element, this._actions.element),
            this._gone, this._cards);
    }

    update(machines) {
        const vm = machines.named(this._name);
        this._gone.hidden = vm !== undefined;
        this._cards.hidden = this._state.element.hidden = this._actions.element.hidden = vm === undefined;
        if (vm === undefined)
            return;
        this._state.update(vm);
        this._actions.update(vm);
        this._console.update(vm);
        setText(this._unit, vm.unit);
        setText(this._unitState, unitState(vm));
        for (const [title, text, value] of this._facts) {
            setText(text, value(vm));
            title.hidden = text.hidden = text.textContent === "";
        }
        this._updateDevices(vm.own.Devices ?? []);
        if (this._log === null) {
            this._log = new Log(vm);
            this._cards.append(this._log.element);
        }
    }

    close() {
        this._console.close();
        this._log?.close();
    }

    _overview() {
        return element("section", { class: "card" },
            element("div", { class: "card-head" }, element("h2", {}, "Overview")),
            element("dl", {},
                element("dt", {}, "Unit"), element("dd", {}, this._unit, " ", this._unitState),
                ...this._facts.flatMap(([title, text]) => [title, text])));
    }

    _deviceCard() {
        this._deviceSection = element("section", { class: "card" },
            element("div", { class: "card-head" }, element("h2", {}, "Devices")),
            element("table", { class: "devices" },
                element("thead", {},
                    element("tr", {}, ...["Kind", "Name", "Details"].map(title => element("th", { scope: "col" }, title)))),
                this._devices));
        return this._deviceSection;
    }

    _updateDevices(devices) {
        const now = JSON.stringify(devices);
        if (now === this._shown)
            return;
        this._shown = now;
        this._deviceSection.hidden = devices.length === 0;
        this._devices.replaceChildren(...devices.map(([kind, name, values]) =>
            element("tr", {}, element("td", {}, kind), element("td", {}, name), element("td", {}, details(values)))));
    }

    /* The page of services that Cockpit itself has. */
    _openUnit() {
        cockpit.jump(`/system/services#/${this._unit.textContent}`, cockpit.transport.host);
    }
}
