/* Units are started and stopped by systemd, which answers with a job; the job's end says whether it was done. */

import cockpit from "./cockpit.js";

const SYSTEMD = "org.freedesktop.systemd1";
const PATH = "/org/freedesktop/systemd1";
const MANAGER = "org.freedesktop.systemd1.Manager";

let client = null;

function systemd() {
    if (client === null) {
        const made = cockpit.dbus(SYSTEMD, { bus: "system", superuser: "try" });
        made.addEventListener("close", () => {
            if (client === made)
                client = null;
        });
        // Without it systemd tells nobody of the ends of jobs.
        made.call(PATH, MANAGER, "Subscribe", [], { type: "" }).catch(() => {});
        client = made;
    }
    return client;
}

/* StartUnit or StopUnit. Returns when the job has ended, with its result: "done" or, say, "failed". */
export async function unitJob(method, unit) {
    const bus = systemd();
    const ended = new Map(); // a job may have ended before we are told its path
    let told = null;
    const onRemoved = (_path, _interface, _signal, [, job, , result]) => {
        ended.set(job, result);
        told?.();
    };
    const subscription = bus.subscribe({ path: PATH, interface: MANAGER, member: "JobRemoved" }, onRemoved);
    const onClose = () => told?.();
    bus.addEventListener("close", onClose);
    try {
        const [job] = await bus.call(PATH, MANAGER, method, [unit, "replace"], { type: "ss" });
        while (!ended.has(job)) {
            if (client !== bus)
                throw new Error("the connection to systemd has ended");
            await new Promise(resolve => { told = resolve; });
        }
        return ended.get(job);
    } finally {
        bus.removeEventListener("close", onClose);
        subscription.remove();
    }
}
