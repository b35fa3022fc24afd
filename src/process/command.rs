//! The description of a command.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::child::{Child, ChildStderr, ChildStdout};
use super::limits::Resource;
use super::pty::PtySize;
use super::status::{ExitStatus, Output};
use super::stdio::{Drain, Feed, Kind, Stdio};
use crate::agent::protocol::{Limit, Spawn};
use crate::agent::{self, Client};

/// What commands of an instance start with: the image's configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) current_dir: Option<OsString>,
    /// `user`, `user:group` or `:group`, to be looked up in the guest.
    pub(crate) user: Option<OsString>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
}

/// How long a machine may take to turn itself off after its last command.
const EXEC_END: std::time::Duration = std::time::Duration::from_secs(10);

/// A command to run in the guest.
///
/// This corresponds to [`std::process::Command`]; an instance makes it. Differences:
///
/// - The environment starts as that of the image and not as the host process's, the working directory
///   as the image's or `/`.
/// - A name without `/` is looked up in the `PATH` the command itself will have, or the usual
///   directories when it has none.
/// - The command leads a process group of its own, so that [`Child::kill`] reaches what it starts.
/// - Standard streams that are inherited are carried between guest and host; see [`Stdio`].
pub struct Command {
    client: Arc<Client>,
    defaults: Arc<Defaults>,
    program: OsString,
    args: Vec<OsString>,
    arg0: Option<OsString>,
    env_clear: bool,
    env: BTreeMap<OsString, Option<OsString>>,
    current_dir: Option<OsString>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    pty: Option<PtySize>,
    user: Option<OsString>,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    process_group: i32,
    setsid: bool,
    limits: Vec<Limit>,
    timeout: Option<Duration>,
}

impl Command {
    pub(crate) fn new(client: Arc<Client>, defaults: Arc<Defaults>, program: impl AsRef<OsStr>) -> Self {
        Command {
            client,
            defaults,
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            arg0: None,
            env_clear: false,
            env: BTreeMap::new(),
            current_dir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            pty: None,
            user: None,
            uid: None,
            gid: None,
            groups: None,
            process_group: 0,
            setsid: false,
            limits: Vec::new(),
            timeout: None,
        }
    }

    /// Adds an argument. It is passed byte for byte; no shell sees it.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets `argv[0]`, which is the program's name otherwise. This corresponds to
    /// [`std::os::unix::process::CommandExt::arg0`].
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    pub fn envs(
        &mut self,
        vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (key, value) in vars {
            self.env(key, value);
        }
        self
    }

    /// Takes an environment variable away, also one of the image.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        if self.env_clear {
            self.env.remove(key.as_ref());
        } else {
            self.env.insert(key.as_ref().to_owned(), None);
        }
        self
    }

    /// Takes all environment variables away, also those of the image.
    pub fn env_clear(&mut self) -> &mut Self {
        self.env_clear = true;
        self.env.clear();
        self
    }

    /// Sets the working directory, a path in the guest.
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(dir.as_ref().as_os_str().to_owned());
        self
    }

    /// Sets standard input: inherited by default for [`spawn`](Command::spawn) and
    /// [`status`](Command::status), null for [`output`](Command::output).
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Sets standard output: inherited by default for [`spawn`](Command::spawn) and
    /// [`status`](Command::status), piped for [`output`](Command::output).
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Sets standard error: inherited by default for [`spawn`](Command::spawn) and
    /// [`status`](Command::status), piped for [`output`](Command::output).
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// Runs the command on a terminal of its own, of this size: standard input, output and error are
    /// one pseudo-terminal, which controls the new session that the command leads. `TERM` is
    /// `xterm-256color` unless the environment has one or was cleared. Has no twin in std.
    ///
    /// Everything the terminal says, standard error included, is standard output here; what was set for
    /// [`stderr`](Command::stderr) does not count. What is written to standard input is what is typed.
    /// Its end is typed too (Control-D) if the terminal takes lines at that moment, and is nothing to
    /// programs that take single keys. Null input is at its end from the beginning.
    ///
    /// The terminal hangs up (`SIGHUP`) when the command ends, or when its
    /// [`stdout`](Child::stdout) is dropped. [`Child::kill`] also reaches the foreground job of a
    /// shell. Output passes as the guest's terminal makes it, which by default sends `\r\n` for `\n`
    /// and echoes its input. The host's own terminal is left as it is.
    pub fn pty(&mut self, size: PtySize) -> &mut Self {
        self.pty = Some(size);
        self
    }

    /// Sets the user to run as: `"name"`, `"1000"`, `"name:group"` or `"1000:1000"`. Has no twin in std.
    ///
    /// Names are looked up in the guest's `/etc/passwd` and `/etc/group` when the command starts. The
    /// command gets the user's primary group, all groups that name it as a member, and a `HOME`,
    /// unless [`env`](Command::env) and the like say otherwise. With a group of its own it is in that alone. A word
    /// of digits is always a number; one without an entry is a user of group 0 whose home is `/`.
    ///
    /// What [`uid`](Command::uid), [`gid`](Command::gid) and [`groups`](Command::groups) say comes
    /// first. An unknown name is [`io::ErrorKind::NotFound`] when the command starts, a number above
    /// 2 147 483 647 [`io::ErrorKind::InvalidInput`].
    pub fn user(&mut self, user: impl AsRef<OsStr>) -> &mut Self {
        self.user = Some(user.as_ref().to_owned());
        self
    }

    /// Sets the user to run as, by number. This corresponds to
    /// [`std::os::unix::process::CommandExt::uid`].
    pub fn uid(&mut self, uid: u32) -> &mut Self {
        self.uid = Some(uid);
        self
    }

    /// Sets the group to run as, by number. This corresponds to
    /// [`std::os::unix::process::CommandExt::gid`].
    pub fn gid(&mut self, gid: u32) -> &mut Self {
        self.gid = Some(gid);
        self
    }

    /// Sets the supplementary groups. Without this a command with a user of its own has none.
    pub fn groups(&mut self, groups: &[u32]) -> &mut Self {
        self.groups = Some(groups.to_vec());
        self
    }

    /// Sets the process group to join; 0, the default, is a new one. In a joined group
    /// [`Child::kill`] reaches the command alone. This corresponds to
    /// [`std::os::unix::process::CommandExt::process_group`].
    pub fn process_group(&mut self, group: i32) -> &mut Self {
        self.process_group = group;
        self
    }

    /// Has the command lead a new session, and with it a new process group, without a terminal. A
    /// command with a terminal of its own ([`pty`](Command::pty)) does so anyway. This corresponds to
    /// the unstable `setsid` of [`std::os::unix::process::CommandExt`].
    pub fn setsid(&mut self, setsid: bool) -> &mut Self {
        self.setsid = setsid;
        self
    }

    /// Limits what the command, and every process it starts, may use of a resource: `soft` is where the
    /// limit is, `hard` how far the command itself may raise it; [`Resource::UNLIMITED`] is none. Of
    /// two limits of one resource the later counts. Has no twin in std.
    ///
    /// A limit that the guest refuses (`soft` above `hard`: [`io::ErrorKind::InvalidInput`]) is an error
    /// when the command starts.
    pub fn rlimit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Self {
        let resource = resource as u8;
        self.limits.retain(|limit| limit.resource != resource);
        self.limits.push(Limit { resource, soft, hard });
        self
    }

    /// Has the command killed, with its process group, when it still runs after so long; the guest does
    /// that by itself, whether anybody waits or not. What waits for the command then fails with
    /// [`io::ErrorKind::TimedOut`]. The clock is the machine's and stands still while it is paused. Has
    /// no twin in std.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Starts the command. Errors: those of `exec` in the guest, such as
    /// [`io::ErrorKind::NotFound`] and [`io::ErrorKind::PermissionDenied`], with the guest's errno; the
    /// same kinds for a user or working directory that cannot be had, which the message names; a NUL in a string ([`io::ErrorKind::InvalidInput`]); an ended machine
    /// ([`io::ErrorKind::NotConnected`]).
    pub fn spawn(&mut self) -> io::Result<Child> {
        self.spawn_with([Kind::Inherit, Kind::Inherit, Kind::Inherit])
    }

    /// Runs the command to its end and takes what it writes.
    ///
    /// See [`Child::wait_with_output`] for commands that leave processes behind.
    pub fn output(&mut self) -> io::Result<Output> {
        self.spawn_with([Kind::Null, Kind::Piped, Kind::Piped])?.wait_with_output()
    }

    /// Runs the command to its end.
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.spawn()?.wait()
    }

    /// Runs the command as what the machine is for: as process 1, with a `/proc` of its own processes, and the machine
    /// ends when it does. Gives how it ended; the machine is off then. An init such as systemd's or a container's entry
    /// point finds itself where it wants to be.
    ///
    /// This corresponds to [`std::os::unix::process::CommandExt::exec`], which replaces the calling process; here the
    /// caller goes on. Other commands run beside it until it ends, among the machine's own processes.
    ///
    /// # Errors
    /// As [`Command::spawn`]; [`io::ErrorKind::ResourceBusy`] for a machine that has one already;
    /// [`io::ErrorKind::TimedOut`] when the machine has not turned itself off ten seconds later. It runs on then.
    pub fn exec(&mut self) -> io::Result<ExitStatus> {
        let status = self.spawn_as([Kind::Inherit, Kind::Inherit, Kind::Inherit], true)?.wait()?;
        match self.client.wait_cause(EXEC_END) {
            true => Ok(status),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the machine does not turn itself off")),
        }
    }

    /// The program, as it was given.
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// The arguments without `argv[0]`.
    pub fn get_args(&self) -> CommandArgs<'_> {
        CommandArgs { inner: self.args.iter() }
    }

    /// The changes to the image's environment, by name; `None` for a variable that is taken away.
    pub fn get_envs(&self) -> CommandEnvs<'_> {
        CommandEnvs { inner: self.env.iter() }
    }

    /// The working directory, if it was set.
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.current_dir.as_deref().map(Path::new)
    }

    /// `NAME=value` of all variables the command gets.
    fn full_env(&self) -> io::Result<Vec<CString>> {
        let base = if self.env_clear { &[][..] } else { &self.defaults.env };
        let kept = base.iter().filter(|(key, _)| !self.env.contains_key(key)).map(|(k, v)| (k, v));
        let set = self.env.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let term = (self.pty.is_some() && self.may_add("TERM", false))
            .then_some((OsStr::new("TERM"), OsStr::new("xterm-256color")));
        kept.chain(set)
            .map(|(key, value)| (&**key, &**value))
            .chain(term)
            .map(|(key, value)| {
                guest_string([key.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat())
            })
            .collect()
    }

    /// Whether this variable, which nobody has set or taken away for this command, is ours to set. One
    /// of the image's stays unless we may `replace` it.
    fn may_add(&self, key: &str, replace: bool) -> bool {
        let of_image = self.defaults.env.iter().any(|(known, _)| known == key);
        !self.env_clear && !self.env.contains_key(OsStr::new(key)) && (replace || !of_image)
    }

    fn spawn_with(&mut self, default: [Kind; 3]) -> io::Result<Child> {
        self.spawn_as(default, false)
    }

    fn spawn_as(&mut self, default: [Kind; 3], init: bool) -> io::Result<Child> {
        let [stdin, stdout, stderr] = default;
        let stdin = take(&mut self.stdin, stdin)?;
        let stdout = take(&mut self.stdout, stdout)?;
        let stderr = match self.pty {
            Some(_) => Kind::Null,
            None => take(&mut self.stderr, stderr)?,
        };
        let stdio = [stdin.mode(), stdout.mode(), stderr.mode()];
        let feed = Feed::new(stdin)?;
        let drain_stdout = Drain::new(stdout, agent::Output::Stdout)?;
        let drain_stderr = Drain::new(stderr, agent::Output::Stderr)?;

        let program = guest_string(&*self.program)?;
        let arg0 = self.arg0.as_ref().unwrap_or(&self.program);
        let argv: Vec<CString> =
            [arg0].into_iter().chain(&self.args).map(|arg| guest_string(&**arg)).collect::<Result<_, _>>()?;
        let env = self.full_env()?;
        let cwd = self.current_dir.as_ref().or(self.defaults.current_dir.as_ref());
        let cwd = cwd.map(|dir| guest_string(&**dir)).transpose()?;
        // A user given here is not a member of the groups of the image's user.
        let (mut user, mut uid) = (self.user.as_ref(), self.uid);
        let (mut gid, mut groups) = (self.gid, self.groups.clone());
        if user.is_none() && uid.is_none() {
            user = self.defaults.user.as_ref();
            uid = self.defaults.uid;
            gid = gid.or(self.defaults.gid);
            groups = groups.or_else(|| self.defaults.groups.clone());
        }
        let user = user.map(|user| guest_string(&**user)).transpose()?;
        let stream = self.client.spawn(Spawn {
            program: &program,
            argv: argv.iter().map(|s| &**s).collect::<Vec<&CStr>>(),
            env: env.iter().map(|s| &**s).collect(),
            cwd: cwd.as_deref(),
            stdio,
            terminal: self.pty.map(|size| (size.rows, size.cols)),
            user: user.as_deref(),
            set_home: self.may_add("HOME", self.user.is_some()),
            uid,
            gid,
            groups,
            process_group: self.process_group,
            new_session: self.setsid,
            limits: self.limits.clone(),
            timeout_ns: self
                .timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1)),
            init,
        })?;
        let connect = || -> io::Result<Child> {
            Ok(Child {
                stdin: feed.start(&stream)?,
                stdout: drain_stdout
                    .start(&stream, agent::Output::Stdout)?
                    .then(|| ChildStdout::new(stream.clone())),
                stderr: drain_stderr
                    .start(&stream, agent::Output::Stderr)?
                    .then(|| ChildStderr::new(stream.clone())),
                stream: stream.clone(),
                terminal: self.pty.is_some(),
                timeout: self.timeout,
            })
        };
        // No thread to carry its bytes: the command must not run on without its caller.
        connect().inspect_err(|_| stream.abandon())
    }
}

/// What is set, for one run: the command keeps what can be used again.
fn take(set: &mut Option<Stdio>, default: Kind) -> io::Result<Kind> {
    match set {
        None => Ok(default),
        Some(Stdio(Kind::Stdin(_) | Kind::Stdout(_) | Kind::Stderr(_))) => {
            Ok(set.take().map_or(default, |stdio| stdio.0))
        }
        Some(stdio) => stdio.0.try_clone(),
    }
}

/// The one place where the host's strings become the guest's byte strings. On Unix they are the same
/// bytes; elsewhere UTF-8.
fn guest_string(s: impl GuestBytes) -> io::Result<CString> {
    CString::new(s.into_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "nul byte found in provided data"))
}

trait GuestBytes {
    fn into_bytes(self) -> Vec<u8>;
}

impl GuestBytes for &OsStr {
    fn into_bytes(self) -> Vec<u8> {
        self.as_encoded_bytes().to_vec()
    }
}

impl GuestBytes for Vec<u8> {
    fn into_bytes(self) -> Vec<u8> {
        self
    }
}

impl fmt::Debug for Command {
    /// The program and its arguments, quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg:?}"))
    }
}

/// The arguments of a command, from [`Command::get_args`].
///
/// This corresponds to [`std::process::CommandArgs`].
#[derive(Debug, Clone)]
pub struct CommandArgs<'a> {
    inner: std::slice::Iter<'a, OsString>,
}

impl<'a> Iterator for CommandArgs<'a> {
    type Item = &'a OsStr;

    fn next(&mut self) -> Option<&'a OsStr> {
        self.inner.next().map(OsString::as_os_str)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl ExactSizeIterator for CommandArgs<'_> {}

/// The changes to a command's environment, from [`Command::get_envs`].
///
/// This corresponds to [`std::process::CommandEnvs`].
#[derive(Debug, Clone)]
pub struct CommandEnvs<'a> {
    inner: std::collections::btree_map::Iter<'a, OsString, Option<OsString>>,
}

impl<'a> Iterator for CommandEnvs<'a> {
    type Item = (&'a OsStr, Option<&'a OsStr>);

    fn next(&mut self) -> Option<Self::Item> {
        self.inner.next().map(|(key, value)| (key.as_os_str(), value.as_deref()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl ExactSizeIterator for CommandEnvs<'_> {}
