/* All VMs, a row each. */

import { ActionBar } from "./actions.js";
import { element, setText, size } from "./dom.js";

const COLUMNS = ["Name", "State", "vCPUs", "Memory", "Actions"];

/* "2 of 4"; empty for a VM that does not run. */
export function vcpus(vm) {
    if (vm.own.VCPUs === undefined)
        return "";
    return vm.own.MaxVCPUs > vm.own.VCPUs ? `${vm.own.VCPUs} of ${vm.own.MaxVCPUs}` : String(vm.own.VCPUs);
}

/* The state in a coloured label. */
export class StateLabel {
    constructor() {
        this.element = element("span", {});
    }

    update(vm) {
        this.element.className = `label ${vm.shown}`;
        setText(this.element, vm.label);
    }
}

class Row {
    constructor(context) {
        this._link = element("a", {});
        this._state = new StateLabel();
        this._reason = element("p", { class: "reason" });
        this._vcpus = element("td", { "data-label": "vCPUs" });
        this._memory = element("td", { "data-label": "Memory" });
        this._actions = new ActionBar(context, false);
        this.element = element("tr", {},
            element("th", { scope: "row" }, this._link),
            element("td", { "data-label": "State" }, this._state.element, this._reason),
            this._vcpus, this._memory,
            element("td", {}, this._actions.element));
    }

    update(vm) {
        this.element.dataset.vm = vm.name;
        this._link.href = `#/${encodeURIComponent(vm.name)}`;
        setText(this._link, vm.name);
        this._state.update(vm);
        setText(this._reason, vm.reason);
        this._reason.hidden = vm.reason === "";
        setText(this._vcpus, vcpus(vm));
        setText(this._memory, vm.own.Memory === undefined ? "" : size(vm.own.Memory));
        this._actions.update(vm);
    }
}

export class List {
    constructor(context) {
        this._context = context;
        this._rows = new Map(); // by the VM's object path
        this._body = element("tbody", {});
        this._table = element("table", { class: "vms" },
            element("caption", { class: "hidden-text" }, "Virtual machines"),
            element("thead", {}, element("tr", {}, ...COLUMNS.map(title => element("th", { scope: "col" }, title)))),
            this._body);
        this._empty = element("div", { class: "empty" },
            element("h2", {}, "No virtual machines"),
            element("p", {}, "One is made of a disk image at a terminal; it then appears here:"),
            element("pre", {}, "vmservice create web --image debian-13-generic-amd64.qcow2 --size 20G"));
        this.element = element("section", { class: "card" },
            element("div", { class: "card-head" }, element("h1", {}, "Virtual machines")), this._table, this._empty);
    }

    update(machines) {
        const vms = machines.vms;
        this._table.hidden = vms.length === 0;
        this._empty.hidden = vms.length !== 0;
        const paths = new Set(vms.map(vm => vm.path));
        for (const [path, row] of this._rows) {
            if (!paths.has(path)) {
                row.element.remove();
                this._rows.delete(path);
            }
        }
        vms.forEach((vm, index) => {
            if (!this._rows.has(vm.path))
                this._rows.set(vm.path, new Row(this._context));
            const row = this._rows.get(vm.path);
            if (this._body.children[index] !== row.element)
                this._body.insertBefore(row.element, this._body.children[index] ?? null);
            row.update(vm);
        });
    }

    close() {}
}
