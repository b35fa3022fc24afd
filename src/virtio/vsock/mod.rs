//! virtio-vsock: stream sockets between the guest and this process.
//!
//! The host's end is in the process itself: [`VsockHost`] listens and connects, [`VsockStream`]
//! reads and writes. No file descriptor and no thread is behind it: a write puts its bytes into
//! the guest's buffers on the caller's thread, the guest's packets are taken on the vCPU's.
//!
//! Credit bounds what either side may send ahead, so memory is bounded whatever the guest does,
//! and so are the numbers of connections and of those nobody has accepted. A connection that the
//! guest resets, or whose guest is gone, ends with `ConnectionReset`; after the device is gone
//! everything new fails with `NotConnected`.

mod buffer;
mod conn;
pub(crate) mod packet;
mod state;
mod stream;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::device::{Activation, VirtioDevice, copy_config};
use super::queue::QueueRegs;
use super::spec::ID_VSOCK;
use state::{Active, State};

pub use stream::{VsockHost, VsockListener, VsockStream};

/// Queue indices.
#[cfg(test)]
const RX: usize = 0;
const TX: u16 = 1;
#[cfg(test)]
const EVENT: usize = 2;

/// The device and the host's side of it.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends everything for good.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.abort_all(io::ErrorKind::ConnectionReset);
        for listener in state.listeners.values() {
            listener.arrived.notify_all();
        }
        state.work(false);
        state.active = None;
    }
}

/// The socket device. Dropping it ends all streams.
#[derive(Debug)]
pub struct Vsock {
    shared: Arc<Shared>,
}

impl Vsock {
    /// An idle device for the guest with the context ID `guest_cid`, which is 3 or more.
    pub fn new(guest_cid: u32) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new(guest_cid.into())) }) }
    }

    /// The host's side.
    pub fn host(&self) -> VsockHost {
        VsockHost::new(self.shared.clone())
    }

    /// Ends all connections and has the guest's driver told so, as after a restore.
    pub fn transport_reset(&self) {
        let mut state = self.shared.lock();
        state.announce_reset();
        state.work(false);
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        ID_VSOCK
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.shared.lock().guest_cid.to_le_bytes(), offset, data);
    }
    fn activate(&self, activation: Activation) {
        let Activation { queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        if let (Some(rx), Some(tx), Some(event)) = (queues.next(), queues.next(), queues.next()) {
            let mut state = self.shared.lock();
            if !state.closed {
                let event_buffers = Default::default();
                state.active = Some(Active { rx, tx, event, event_buffers, interrupt });
                state.work(true);
            }
        }
    }
    fn reset(&self) {
        let mut state = self.shared.lock();
        state.active = None;
        state.driver_gone();
    }
    fn queue_notify(&self, index: u16) {
        let mut state = self.shared.lock();
        state.work(index == TX);
    }
    fn queue_regs(&self) -> Vec<QueueRegs> {
        let state = self.shared.lock();
        state.active.iter().flat_map(Active::regs).collect()
    }
    fn pause(&self) {
        let mut state = self.shared.lock();
        state.paused = true;
        // Who waits only as long as the guest runs.
        state.conns.values().for_each(conn::Conn::wake_all);
    }
    fn resume(&self) {
        let mut state = self.shared.lock();
        state.paused = false;
        state.work(true);
    }
    fn restored(&self) {
        self.transport_reset();
    }
}
