/* What a guest prints, as lines of text. Of ECMA-48's control sequences those are obeyed that shells and line editors need: moves
 * of the cursor, erasing, inserting and deleting. Colours and all others are taken out. */

const KEPT_LINES = 500;
const SCREEN_LINES = 24;
const SCREEN_COLUMNS = 80;
const LONGEST_LINE = 1024;
const LONGEST_SEQUENCE = 4096; // systemd's of OSC 3008 have some hundreds

export class Screen {
    constructor() {
        this._lines = [""];
        this._row = 0;
        this._column = 0;
        this._sequence = ""; // an escape sequence that has begun
    }

    get text() { return this._lines.join("\n"); }

    /* Where the cursor is in `text`. */
    get cursor() {
        return this._lines.slice(0, this._row).reduce((sum, line) => sum + line.length + 1, 0)
            + Math.min(this._column, this._lines[this._row].length);
    }

    write(text) {
        for (const char of text) {
            if (this._sequence !== "")
                this._continue(char);
            else if (char === "\x1b")
                this._sequence = char;
            else if (char < " " || char === "\x7f")
                this._control(char);
            else
                this._put(char);
        }
    }

    _put(char) {
        const at = this._column;
        if (at >= LONGEST_LINE)
            return;
        const line = this._lines[this._row].padEnd(at);
        this._set(line.slice(0, at) + char + line.slice(at + char.length));
        this._column += char.length;
    }

    _set(line) {
        this._lines[this._row] = line;
    }

    _control(char) {
        if (char === "\n")
            this._newLine();
        else if (char === "\r")
            this._column = 0;
        else if (char === "\b")
            this._column = Math.max(0, this._column - 1);
        else if (char === "\t")
            this._column = this._column - this._column % 8 + 8;
    }

    _newLine() {
        this._row += 1;
        if (this._row === this._lines.length)
            this._lines.push("");
        if (this._lines.length > KEPT_LINES) {
            this._lines.shift();
            this._row -= 1;
        }
    }

    /* ESC [ … letter; ESC ] … BEL or ESC \, as titles of windows; ESC and a letter, some with one more between. */
    _continue(char) {
        this._sequence += char;
        const sequence = this._sequence;
        const kind = sequence[1];
        if (kind === "[") {
            if (sequence.length > 2 && char >= "@" && char <= "~")
                this._end(() => this._obey(char, sequence.slice(2, -1)));
        } else if ("]PX^_".includes(kind)) {
            if (char === "\x07" || sequence.endsWith("\x1b\\"))
                this._end();
        } else if (!"()*+#% ".includes(char)) {
            this._end(() => { if (char === "c") this._clear(); });
        }
        if (this._sequence.length > LONGEST_SEQUENCE)
            this._end();
    }

    _end(act) {
        this._sequence = "";
        act?.();
    }

    /* A control sequence (CSI) with its parameters. */
    _obey(letter, parameters) {
        const numbers = parameters.split(";").map(word => Math.min(Number.parseInt(word, 10) || 0, LONGEST_LINE));
        const count = Math.max(1, numbers[0]);
        const line = this._lines[this._row];
        const at = this._column;
        switch (letter) {
        case "A": this._moveTo(this._row - count, at); break;
        case "B": this._moveTo(this._row + count, at); break;
        case "C": this._moveTo(this._row, Math.max(at, Math.min(at + count, SCREEN_COLUMNS - 1))); break;
        case "D": this._moveTo(this._row, at - count); break;
        case "G": this._moveTo(this._row, count - 1); break;
        case "H": case "f": this._moveTo(this._top() + count - 1, Math.max(1, numbers[1] ?? 1) - 1); break;
        case "J": this._erase(numbers[0]); break;
        case "K": this._eraseLine(numbers[0]); break;
        case "P": this._set(line.slice(0, at) + line.slice(at + count)); break;
        case "@": this._set((line.slice(0, at).padEnd(at) + " ".repeat(count) + line.slice(at)).slice(0, LONGEST_LINE)); break;
        }
    }

    _top() {
        return Math.max(0, this._lines.length - SCREEN_LINES);
    }

    _moveTo(row, column) {
        this._row = Math.min(Math.max(row, 0), this._lines.length - 1);
        this._column = Math.max(0, column);
    }

    _eraseLine(which) {
        const line = this._lines[this._row];
        const at = this._column;
        if (which === 0)
            this._set(line.slice(0, at));
        else
            this._set(which === 1 ? "".padEnd(at + 1) + line.slice(at + 1) : "");
    }

    _erase(which) {
        if (which >= 2)
            return this._clear();
        if (which === 0) {
            this._eraseLine(0);
            this._lines.length = this._row + 1;
        }
    }

    _clear() {
        this._lines = [""];
        this._row = 0;
        this._column = 0;
    }
}
