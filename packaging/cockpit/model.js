/* What there is: org.vmservice.Manager1 knows every VM, running or not, and each running VM has an object of its own. */

import cockpit from "./cockpit.js";

const MANAGER = "org.vmservice.Manager1";
const MANAGER_PATH = "/org/vmservice/Manager1";
const MANAGER_VM = "org.vmservice.Manager1.VM";
const VM = "org.vmservice.VM1";
const VM_PATH = "/org/vmservice/VM1";
const OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES = "org.freedesktop.DBus.Properties";

/* What is used of each interface, by type. Who has the name of a VM may be anybody who has taken over its VMM: what is of another
 * type is left out. */
const KNOWN = {
    Name: "s", Unit: "s", BusName: "s", State: "s", ActiveState: "s", SubState: "s", Reason: "s", HasConfiguration: "b",
};
const OWN = { VCPUs: "y", MaxVCPUs: "y", Memory: "t", LastExit: "s", GuestReady: "b", Devices: "a(ssa{sv})" };

/* a{sv} as cockpit has it, without the variants. */
function plain(properties, types) {
    return Object.fromEntries(Object.entries(properties)
        .filter(([name, value]) => Object.hasOwn(types, name) && value.t === types[name])
        .map(([name, value]) => [name, value.v]));
}

/* A console's label becomes an argument of a command. */
const LABEL = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;

const LABELS = new Map([
    ["running", "Running"],
    ["paused", "Paused"],
    ["created", "Created"],
    ["shutdown", "Shut down"],
    ["starting", "Starting"],
    ["stopping", "Stopping"],
    ["restarting", "Restarting"],
    ["silent", "No answer"],
    ["failed", "Failed"],
    ["off", "Off"],
]);

/* A detail of a device as text; empty for what is none: nobody has to send a plain value. */
export function plainText(variant) {
    return variant === undefined || typeof variant.v === "object" ? "" : String(variant.v);
}

/* One VM. `known` is what the manager says, `own` what the VM says of itself while it runs. */
export class Vm {
    constructor(path, onchange) {
        this.path = path;
        this.known = {};
        this.own = {};
        this.underway = new Set(); // the actions that have been asked for and not been answered
        this._client = null;
        this._busName = "";
        this._onchange = onchange;
    }

    get name() { return this.known.Name ?? ""; }
    get unit() { return this.known.Unit ?? ""; }
    get reason() { return this.known.Reason ?? ""; }
    get configured() { return this.known.HasConfiguration === true; }
    get runs() { return this._busName !== ""; }
    get active() { return this.known.ActiveState ?? ""; }
    get idle() { return !this.runs && ["", "inactive", "failed"].includes(this.active); }
    get stopping() { return this.active === "deactivating"; }

    /* running, paused, created or shutdown; empty while it does not run, and on its way down. */
    get state() { return this.stopping ? "" : this.known.State ?? ""; }

    /* What is shown as its state: a key of LABELS. */
    get shown() {
        if (this.stopping)
            return "stopping";
        if (this.active === "activating")
            return (this.known.SubState ?? "").startsWith("auto-restart") ? "restarting" : "starting";
        if (LABELS.has(this.state))
            return this.state;
        if (this.active === "failed")
            return "failed";
        return this.idle ? "off" : "silent";
    }

    get label() { return LABELS.get(this.shown); }

    /* Label and mode of each console. */
    get consoles() {
        return (this.own.Devices ?? [])
            .filter(([kind, name, details]) => LABEL.test(name) && (kind === "console" || details.console?.v === true))
            .map(([, name, details]) => ({ name, mode: plainText(details.mode) }));
    }

    /* Calls a method of the VM's own object; `type` is the signature of `values`. */
    call(method, type = "", values = []) {
        if (this._client === null)
            return Promise.reject(new Error(`${this.name} does not run`));
        return this._client.call(VM_PATH, VM, method, values, { type });
    }

    update(properties) {
        Object.assign(this.known, plain(properties, KNOWN));
        this._follow(this.known.BusName ?? "");
        this._onchange();
    }

    close() {
        this._follow("");
    }

    /* Listens to the VM that has this bus name, to none where it is empty. */
    _follow(name) {
        if (name === this._busName)
            return;
        this._busName = name;
        this._client?.close();
        this._client = null;
        this.own = {};
        if (name !== "")
            this._listen(name);
    }

    _listen(name) {
        const client = cockpit.dbus(name, { bus: "system", superuser: "try" });
        let owner = null;
        const take = properties => {
            if (this._client !== client)
                return;
            Object.assign(this.own, plain(properties, OWN));
            this._onchange();
        };
        // A VM that ends meanwhile answers nothing; the manager says that it has ended.
        const ask = () => client.call(VM_PATH, PROPERTIES, "GetAll", [VM], { type: "s" }).then(([all]) => take(all), () => {});
        this._client = client;
        client.subscribe({ path: VM_PATH, interface: PROPERTIES, member: "PropertiesChanged", arg0: VM },
                         (_path, _interface, _signal, [, changed]) => take(changed));
        // A VM that has been restarted in no time is another one under the same name.
        client.addEventListener("owner", (_event, now) => {
            if (owner !== null && now !== null && now !== owner)
                ask();
            owner = now ?? owner;
        });
        ask();
    }
}

/* All VMs of the system, followed by signals. `onchange` is called whenever something may look different. */
export class Machines {
    constructor(onchange) {
        this.loaded = false;
        this.problem = null; // why the manager cannot be asked, a sentence
        this._vms = new Map(); // by object path
        this._onchange = onchange;
        this._client = null;
    }

    /* The VMs, in the natural order of their names: web2 is before web10. */
    get vms() {
        const compare = new Intl.Collator("en", { numeric: true }).compare;
        return [...this._vms.values()].sort((one, other) => compare(one.name, other.name));
    }

    named(name) {
        return this.vms.find(vm => vm.name === name);
    }

    /* Asks the manager, which the bus starts; anew when it has been replaced, since it keeps nothing. */
    open() {
        this.problem = null;
        const client = cockpit.dbus(MANAGER, { bus: "system" });
        let owner = null;
        this._client = client;
        client.subscribe({ path: MANAGER_PATH, interface: OBJECT_MANAGER },
                         (_path, _interface, signal, values) => this._objects(signal, values));
        client.subscribe({ path_namespace: `${MANAGER_PATH}/vm`, interface: PROPERTIES, member: "PropertiesChanged" },
                         (path, _interface, _signal, [of, changed]) => this._changed(path, of, changed));
        client.addEventListener("owner", (_event, name) => {
            if (owner !== null && name !== owner)
                this._ask(client);
            owner = name;
        });
        client.addEventListener("close", (_event, options) => {
            if (this._client === client)
                this._lost(client, options.message || cockpit.message(options));
        });
        this._ask(client);
    }

    _ask(client) {
        client.call(MANAGER_PATH, OBJECT_MANAGER, "GetManagedObjects", [], { type: "" }).then(([objects]) => {
            for (const path of this._vms.keys()) {
                if (!(path in objects))
                    this._remove(path);
            }
            for (const [path, interfaces] of Object.entries(objects))
                this._put(path, interfaces);
            this.loaded = true;
            this._onchange();
        }, error => this._lost(client, error.message || cockpit.message(error)));
    }

    /* What was known is not shown any longer: it would not change with the VMs. */
    _lost(client, problem) {
        if (this._client !== client)
            return;
        this._client = null;
        client.close();
        this.problem = problem;
        this.loaded = false;
        for (const path of this._vms.keys())
            this._remove(path);
        this._onchange();
    }

    _objects(signal, [path, interfaces]) {
        if (signal === "InterfacesAdded")
            this._put(path, interfaces);
        else if (signal === "InterfacesRemoved" && interfaces.includes(MANAGER_VM))
            this._remove(path);
        this._onchange();
    }

    _changed(path, of, changed) {
        if (of === MANAGER_VM)
            this._vms.get(path)?.update(changed);
    }

    _put(path, interfaces) {
        if (!(MANAGER_VM in interfaces))
            return;
        if (!this._vms.has(path))
            this._vms.set(path, new Vm(path, this._onchange));
        this._vms.get(path).update(interfaces[MANAGER_VM]);
    }

    _remove(path) {
        this._vms.get(path)?.close();
        this._vms.delete(path);
    }
}
