//! Bytes to the device, straight from the memory map: through a small ring of staging buffers, or,
//! where the device's memory is the CPU's, into the buffer itself.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::device::Device;
use crate::error::{Error, Result};

/// Bytes of a staging buffer, and how many there are.
const PIECE: usize = 32 << 20;
const PIECES: usize = 3;

/// Copies bytes to buffers, in order.
pub(super) struct Uploader<'a> {
    device: &'a Device,
    encoder: wgpu::CommandEncoder,
    current: wgpu::Buffer,
    used: usize,
    made: usize,
    ready: Receiver<wgpu::Buffer>,
    done: Sender<wgpu::Buffer>,
    /// Buffers that are written in place, and still mapped.
    mapped: HashSet<wgpu::Buffer>,
}

impl<'a> Uploader<'a> {
    pub(super) fn new(device: &'a Device) -> Uploader<'a> {
        let (done, ready) = channel();
        let current = staging(device);
        let encoder = device.device.create_command_encoder(&Default::default());
        Uploader { device, encoder, current, used: 0, made: 1, ready, done, mapped: HashSet::new() }
    }

    /// Copies `bytes` to `to` at `offset`, a multiple of four; up to three zeros may follow them.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn copy(
        &mut self,
        mut bytes: &[u8],
        to: &wgpu::Buffer,
        mut offset: usize,
    ) -> Result<()> {
        if self.device.is_unified {
            return self.copy_in_place(bytes, to, offset);
        }
        while !bytes.is_empty() {
            if self.used == PIECE {
                self.flush()?;
            }
            let count = bytes.len().min(PIECE - self.used);
            let (now, later) = bytes.split_at(count);
            let padded = count.next_multiple_of(4);
            let range = self.used as u64..(self.used + padded) as u64;
            let mut view = self
                .current
                .get_mapped_range_mut(range)
                .map_err(|error| Error::new(error.to_string()).at("staging buffer"))?;
            touch(now);
            view.slice(..count).copy_from_slice(now);
            view.slice(count..).copy_from_slice(&[0; 4][..padded - count]);
            drop(view);
            let (from, at) = (self.used as u64, offset as u64);
            self.encoder.copy_buffer_to_buffer(&self.current, from, to, at, padded as u64);
            self.used += padded.next_multiple_of(16).min(PIECE - self.used);
            offset += count;
            bytes = later;
        }
        Ok(())
    }

    fn copy_in_place(&mut self, bytes: &[u8], to: &wgpu::Buffer, offset: usize) -> Result<()> {
        const ALIGNMENT: usize = wgpu::MAP_ALIGNMENT as usize;
        self.mapped.insert(to.clone());
        // A mapped range begins at a multiple of eight and has whole words.
        let lead = offset % ALIGNMENT;
        let range = (offset - lead) as u64..(offset + bytes.len()).next_multiple_of(4) as u64;
        let view = to.get_mapped_range_mut(range);
        let mut view = view.map_err(|error| Error::new(error.to_string()).at("weights"))?;
        touch(bytes);
        view.slice(lead..lead + bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    /// Sends what is left and waits for it.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn finish(mut self) -> Result<()> {
        self.mapped.iter().for_each(wgpu::Buffer::unmap);
        self.submit();
        self.device.wait()
    }

    fn submit(&mut self) {
        self.current.unmap();
        let next = self.device.device.create_command_encoder(&Default::default());
        let encoder = std::mem::replace(&mut self.encoder, next);
        self.device.queue.submit([encoder.finish()]);
    }

    fn flush(&mut self) -> Result<()> {
        self.submit();
        let (buffer, done) = (self.current.clone(), self.done.clone());
        self.current.map_async(wgpu::MapMode::Write, .., move |_| {
            // Nobody listens any more if the upload has failed.
            let _ = done.send(buffer);
        });
        self.used = 0;
        if self.made < PIECES {
            self.made += 1;
            self.current = staging(self.device);
            return Ok(());
        }
        loop {
            if let Ok(buffer) = self.ready.try_recv() {
                self.current = buffer;
                return Ok(());
            }
            self.device.wait()?;
        }
    }
}

fn staging(device: &Device) -> wgpu::Buffer {
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: PIECE as u64,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    })
}

/// Touches every page on several threads: where a map is read for the first time, that takes longer
/// than the copy.
fn touch(bytes: &[u8]) {
    const PAGE: usize = 4096;
    const SHARE: usize = 4 << 20;
    std::thread::scope(|scope| {
        for share in bytes.chunks(SHARE).filter(|share| share.len() == SHARE) {
            scope.spawn(move || {
                std::hint::black_box(share.iter().step_by(PAGE).fold(0_u8, |sum, b| sum ^ b));
            });
        }
    });
}
