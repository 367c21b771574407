/* What can be asked of a VM: when it makes sense, how it is asked, and what is said when it fails. */

import { askConfirmation, askCount } from "./dialogs.js";
import { element } from "./dom.js";
import { unitJob } from "./systemd.js";

/* The error names of a caller who may not, the VM's and systemd's. */
const NOT_ALLOWED = [
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
];

/* A job that has failed. The manager has the reason, or will have it in a moment: so it is looked for whenever it is shown, and
 * stays when the VM has been started since. */
class JobFailed {
    constructor(vm, result) {
        this._vm = vm;
        this._text = `systemd says of ${vm.unit}: ${result}`;
    }

    get message() {
        if (this._vm.active === "failed" && this._vm.reason !== "")
            this._text = this._vm.reason;
        return this._text;
    }
}

async function runJob(vm, method) {
    const result = await unitJob(method, vm.unit);
    if (result !== "done")
        throw new JobFailed(vm, result);
}

const LOSES = "What it has not written to its disks is lost.";

/* `everywhere`: in the list too. `ask` opens a dialog, which calls its last argument with an answer for `run`. `failed` completes
 * "NAME could not be …". */
const ACTIONS = [
    {
        label: "Start", failed: "started", kind: "primary", everywhere: true,
        applies: vm => vm.idle && vm.configured,
        run: vm => runJob(vm, "StartUnit"),
    },
    {
        label: "Boot", failed: "booted", kind: "primary", everywhere: true,
        applies: vm => ["created", "shutdown"].includes(vm.state),
        run: vm => vm.call("Boot"),
    },
    {
        label: "Resume", failed: "resumed", kind: "primary", everywhere: true,
        applies: vm => vm.state === "paused",
        run: vm => vm.call("Resume"),
    },
    {
        label: "Pause", failed: "paused", kind: "secondary", everywhere: true,
        applies: vm => vm.state === "running",
        run: vm => vm.call("Pause"),
    },
    {
        label: "Resize…", failed: "resized", kind: "secondary", everywhere: true,
        applies: vm => vm.state === "running" && vm.own.MaxVCPUs > 1,
        ask: askCount,
        run: (vm, count) => vm.call("Resize", "y", [count]),
    },
    {
        label: "Stop", failed: "stopped", kind: "secondary", everywhere: true,
        applies: vm => ["active", "activating", "reloading"].includes(vm.active),
        run: vm => runJob(vm, "StopUnit"),
    },
    {
        label: "Press power button", failed: "told of its power button", kind: "secondary", everywhere: false,
        applies: vm => vm.state === "running",
        run: vm => vm.call("PowerButton"),
    },
    {
        label: "Reset…", failed: "reset", kind: "danger", everywhere: false,
        applies: vm => ["running", "paused"].includes(vm.state),
        ask: (vm, submit) => askConfirmation("Reset", vm, `The guest starts anew at once, as by a reset button. ${LOSES}`, submit),
        run: vm => vm.call("Reboot"),
    },
    {
        // Also on its way down: a guest may not hear its power button.
        label: "Force off…", failed: "forced off", kind: "danger", everywhere: false,
        applies: vm => vm.runs && ["running", "paused"].includes(vm.known.State),
        ask: (vm, submit) => askConfirmation("Force off", vm, `The guest ends at once, as without power. ${LOSES}`, submit),
        run: vm => vm.call("Shutdown"),
    },
];

/* The buttons for a VM: those of the list, or with `all` every one. `context` has `changed()`, `privileged()`, and
 * `tell(title, sentence)`, whose `sentence` is a function. */
export class ActionBar {
    constructor(context, all) {
        this._context = context;
        this._vm = null;
        this._pressed = null; // the button that had the focus when it was pressed
        this._buttons = ACTIONS.filter(action => all || action.everywhere).map(action => [action, this._button(action)]);
        this.element = element("div", { class: "actions" }, ...this._buttons.map(([, button]) => button));
    }

    /* Shows what applies to the VM as it is now. */
    update(vm) {
        this._vm = vm;
        for (const [action, button] of this._buttons) {
            button.hidden = !action.applies(vm);
            button.disabled = vm.underway.has(action);
            button.setAttribute("aria-label", `${action.label.replace("…", "")} ${vm.name}`);
        }
        this._keepFocus();
    }

    /* A button that is disabled or goes away drops the focus. Who uses the keyboard finds it at the same button again, or at the
     * first of those that have come instead: the answer may come before the new state or behind it. */
    _keepFocus() {
        const pressed = this._pressed;
        if (pressed === null || pressed.disabled)
            return;
        if (document.activeElement !== document.body && document.activeElement !== pressed) {
            this._pressed = null;
            return;
        }
        const usable = this._buttons.map(([, button]) => button).filter(button => !button.hidden && !button.disabled);
        (pressed.hidden ? usable[0] : pressed)?.focus();
    }

    _button(action) {
        return element("button", { type: "button", class: `button ${action.kind}`, onclick: event => this._press(action, event) },
                       action.label);
    }

    _press(action, event) {
        const vm = this._vm;
        if (action.ask) {
            action.ask(vm, answer => this._run(vm, action, answer));
        } else {
            this._pressed = event.currentTarget;
            this._run(vm, action);
        }
    }

    async _run(vm, action, answer) {
        vm.underway.add(action);
        this._context.changed();
        try {
            await action.run(vm, answer);
        } catch (error) {
            this._context.tell(`${vm.name} could not be ${action.failed}`, () => this._sentence(error));
        } finally {
            vm.underway.delete(action);
            this._context.changed();
        }
    }

    _sentence(error) {
        const hint = NOT_ALLOWED.includes(error.name) && !this._context.privileged()
            ? " With administrative access, which is switched on at the top of the window, it can be done."
            : "";
        return `${error.message.replace(/\.$/, "")}.${hint}`;
    }
}
