//! A byte queue in one ring that grows up to a limit and is filled and emptied in two slices.

/// Room taken at first.
const FIRST: usize = 4096;

/// A bounded queue of bytes.
#[derive(Debug, Default)]
pub(super) struct ByteQueue {
    ring: Box<[u8]>,
    start: usize,
    len: usize,
}

impl ByteQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the contents and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Appends `count` bytes that `fill` provides, in up to two parts. `fill` is told where in the
    /// `count` bytes each part begins. If it fails, nothing was appended.
    pub(super) fn append<E>(
        &mut self,
        count: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.grow_to(self.len + count);
        let size = self.ring.len();
        if size == 0 {
            return Ok(());
        }
        let end = (self.start + self.len) % size;
        let first = count.min(size - end);
        if let Some(part) = self.ring.get_mut(end..end + first) {
            fill(0, part)?;
        }
        if first < count
            && let Some(part) = self.ring.get_mut(..count - first)
        {
            fill(first, part)?;
        }
        self.len += count;
        Ok(())
    }

    /// The first `limit` bytes, in order, in two parts.
    pub(super) fn front(&self, limit: usize) -> (&[u8], &[u8]) {
        let count = self.len.min(limit);
        let first = count.min(self.ring.len() - self.start);
        let head = self.ring.get(self.start..self.start + first).unwrap_or_default();
        (head, self.ring.get(..count - first).unwrap_or_default())
    }

    /// Drops the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start = match self.len {
            0 => 0,
            _ => (self.start + count) % self.ring.len().max(1),
        };
    }

    fn grow_to(&mut self, needed: usize) {
        if needed <= self.ring.len() {
            return;
        }
        let mut ring = vec![0; needed.next_power_of_two().max(FIRST)].into_boxed_slice();
        let (a, b) = self.front(self.len);
        let mut rest = &mut ring[..];
        for part in [a, b] {
            if let Some((first, later)) = std::mem::take(&mut rest).split_at_mut_checked(part.len()) {
                first.copy_from_slice(part);
                rest = later;
            }
        }
        (self.ring, self.start) = (ring, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(q: &mut ByteQueue, data: &[u8]) {
        q.append(data.len(), |at, part| {
            part.copy_from_slice(&data[at..at + part.len()]);
            Ok::<_, ()>(())
        })
        .unwrap();
    }

    proptest::proptest! {
        #[test]
        fn behaves_like_a_deque(ops in proptest::collection::vec((0usize..9000, 0usize..9000), 1..40)) {
            let (mut q, mut model, mut next) = (ByteQueue::default(), std::collections::VecDeque::new(), 0u8);
            for (add, take) in ops {
                let add = add.min(20_000 - model.len());
                let data: Vec<u8> = (0..add).map(|_| { next = next.wrapping_add(7); next }).collect();
                push(&mut q, &data);
                model.extend(&data);
                let (a, b) = q.front(take);
                let got: Vec<u8> = a.iter().chain(b).copied().collect();
                let want: Vec<u8> = model.iter().take(take).copied().collect();
                assert_eq!(got, want);
                q.consume(take);
                model.drain(..take.min(model.len()));
                assert_eq!(q.len(), model.len());
            }
            assert!(q.ring.len() <= 32_768, "grows no further than its contents need");
        }
    }

    #[test]
    fn a_failed_append_leaves_the_queue_as_it_was() {
        let mut q = ByteQueue::default();
        push(&mut q, b"abc");
        assert_eq!(q.append(5, |_, _| Err(1)), Err(1));
        assert_eq!(q.front(10), (&b"abc"[..], &b""[..]));
    }
}
