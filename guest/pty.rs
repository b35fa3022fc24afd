//! The terminal of a command: both ends of a pseudo-terminal.
//!
//! It is *open* from before the command starts until it ends, or until the host hangs up. We hold the
//! command's end too for all that time: a command that closes all its own, to open `/dev/tty` again
//! later, has not hung up. Once ours is closed, reading gives what is left and then `EIO`, or `EAGAIN`
//! for as long as processes that the command left behind have it open.
//!
//! The kernel holds at most [`BACKLOG`] bytes of output, and a command that writes more waits.

use crate::sys::{self, Fd, O_NOCTTY, O_NONBLOCK, O_RDWR, Result};

/// No less than a terminal can hold of what was written to it and not read: a line discipline's buffer
/// and the one before it.
pub(crate) const BACKLOG: u32 = 64 * 1024;

const ICANON: u32 = 0o2;
const IUTF8: u32 = 0o40_000;
/// Where in a termios the character is that ends the input, and its value when there is none.
const VEOF: usize = 4;
const DISABLED: u8 = 0;

pub(crate) struct Terminal {
    master: Fd,
    slave: Fd,
}

impl Terminal {
    /// A new terminal of this size, for `uid` if that is not whom we are.
    pub(crate) fn open(rows: u16, cols: u16, uid: Option<u32>) -> Result<Self> {
        let flags = O_RDWR | O_NOCTTY | O_NONBLOCK;
        let master = sys::open(c"/dev/ptmx", flags).or_else(|_| sys::open(c"/dev/pts/ptmx", flags))?;
        // By descriptor: what lies at /dev/pts may be anybody's work.
        let slave = sys::open_terminal_peer(&master)?;
        let terminal = Terminal { master, slave };
        let mut attributes = sys::terminal_attributes(&terminal.slave)?;
        attributes.input |= IUTF8;
        sys::set_terminal_attributes(&terminal.slave, &attributes)?;
        terminal.resize(rows, cols)?;
        if let Some(uid) = uid {
            let _ = sys::chown(&terminal.slave, uid);
        }
        Ok(terminal)
    }

    /// The command's end.
    pub(crate) fn slave(&self) -> &Fd {
        &self.slave
    }

    /// Our end once more, not waiting for anything, to be watched by itself.
    pub(crate) fn duplicate(&self) -> Result<Fd> {
        self.master.duplicate()
    }

    /// Gives it another size, which the kernel tells the foreground process group when it is new.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        sys::set_terminal_size(&self.master, rows, cols)
    }

    /// The character and how often it is to be typed to say "no more input" behind `last`: not at all
    /// where programs read keys and not lines; twice in the middle of a line, of which the first hands
    /// in the line.
    pub(crate) fn end_of_input(&self, last: Option<u8>) -> (u8, usize) {
        let Ok(attributes) = sys::terminal_attributes(&self.master) else { return (DISABLED, 0) };
        let eof = attributes.control[VEOF];
        if attributes.local & ICANON == 0 || eof == DISABLED {
            return (DISABLED, 0);
        }
        let at_start = last.is_none_or(|last| last == b'\n' || last == b'\r' || last == eof);
        (eof, if at_start { 1 } else { 2 })
    }

    /// Ends the input of a terminal that never had any.
    pub(crate) fn type_end_of_input(&self) {
        let (eof, times) = self.end_of_input(None);
        for _ in 0..times {
            let _ = self.master.write(&[eof]);
        }
    }

    /// The process group that has the terminal now.
    pub(crate) fn foreground(&self) -> Option<i32> {
        sys::terminal_foreground(&self.master).ok().filter(|group| *group > 1)
    }
}
