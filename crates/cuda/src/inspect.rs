//! What tests read and write: everything waits for the device.

use crate::abi::{LaneArgument, Pointer, SelectionArgument};
use crate::memory::Array;
use crate::runtime::{CudaRuntime, device_buffer};
use crate::slots::GROUP_SLOTS;
use backend::{Buffer, Inspect};
use half::{bf16, f16};
use kv::bucketed_lru::Tag;
use kv::{LaneId, PAGE_TOKENS, PageEntry, RowId, Selection, Tier};

impl CudaRuntime {
    fn settle(&self) {
        let settled = self.gpu.main.synchronize().and_then(|()| self.gpu.side.synchronize());
        settled.unwrap_or_else(|error| panic!("{error}"));
    }

    fn bytes(&self, array: &Array, at: usize, len: usize) -> Vec<u8> {
        self.settle();
        let mut bytes = vec![0; len];
        array.read(at, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
        bytes
    }

    /// `count` words of the state array from an address on.
    fn words(&self, pointer: Pointer, first: usize, count: usize) -> Vec<u32> {
        let at = (pointer - self.memory.state.pointer) as usize + 4 * first;
        let bytes = self.bytes(&self.memory.state, at, 4 * count);
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    /// An active lane's buffer row, and its indexed pages.
    fn lane(&self, lane: LaneId) -> (usize, usize) {
        let active = self.steps.lock().expect("no launch panicked").active.clone();
        let i = active.binary_search(&lane).expect("the lane is active");
        let words = self.words(self.argument.lanes, lane.at() * size_of::<LaneArgument>() / 4, 2);
        let at = lane.at() * size_of::<LaneArgument>() + std::mem::offset_of!(LaneArgument, selection);
        let selection = self.words(self.argument.lanes + at as u64, 0, size_of::<SelectionArgument>() / 4);
        let window = u64::from(selection[4]) | u64::from(selection[5]) << 32;
        let of = Selection {
            index_unit_tokens: selection[0] as usize,
            window_tokens: window as usize,
            ..Selection::dense()
        };
        (i, of.indexed_pages(words[1] as usize))
    }

    fn frame_at(&self, row: RowId, layer: usize, head: usize) -> usize {
        self.shape.geometry.frame(row, layer, head) * self.shape.geometry.page_bytes()
    }
}

impl Inspect for CudaRuntime {
    fn read(&self, buffer: &Buffer) -> Vec<f32> {
        let buffer = device_buffer(buffer);
        let bytes = self.bytes(&buffer.array, 0, buffer.array.bytes);
        match buffer.is_bf16 {
            true => bytes.as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            false => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        }
    }

    fn write(&self, buffer: &Buffer, elements: &[f32]) {
        self.settle();
        let buffer = device_buffer(buffer);
        let bytes: Vec<u8> = match buffer.is_bf16 {
            true => elements.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            false => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        buffer.array.fill(0, &bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    fn read_frame(&self, row: RowId, layer: usize, head: usize) -> Vec<u8> {
        let (at, len) = (self.frame_at(row, layer, head), self.shape.geometry.page_bytes());
        match (&self.memory.host, row.tier()) {
            (Some(host), Tier::Dram) => {
                self.settle();
                host.bytes(at, len)
            }
            _ => self.bytes(&self.memory.pool, at, len),
        }
    }

    fn write_frame(&self, row: RowId, layer: usize, head: usize, bytes: &[u8]) {
        self.settle();
        let at = self.frame_at(row, layer, head);
        if let (Some(host), Tier::Dram) = (&self.memory.host, row.tier()) {
            return host.fill(at, bytes);
        }
        let written = self.memory.pool.fill(at, bytes);
        written.unwrap_or_else(|error| panic!("{error}"));
    }

    fn read_tags(&self, lane: LaneId, layer: usize, head: usize) -> Vec<Tag> {
        let residency = &self.argument.residency;
        let slots = self.slots.lock().expect("no op panicked").count(lane);
        let groups =
            self.words(residency.groups, lane.at() * residency.max_groups as usize, slots.div_ceil(GROUP_SLOTS));
        let plane = (layer * self.shape.geometry.kv_heads + head) * residency.places as usize;
        let of = |group: u32| self.words(residency.tags, plane + group as usize * GROUP_SLOTS, GROUP_SLOTS);
        groups.into_iter().flat_map(of).take(slots).map(Tag).collect()
    }

    fn read_page_list(&self, lane: LaneId, head: usize) -> Vec<PageEntry> {
        let at = self.lane(lane).0 * self.shape.geometry.kv_heads + head;
        let len = self.words(self.argument.page_list_len, at, 1)[0] as usize;
        let first = at * self.argument.max_pages as usize;
        // Of a page that was coming (`coming_entry` of kernels/runtime.cuh), the row is all that counts.
        let entry = |word: u32| if word & 63 == 63 { PageEntry(word & !63 | 7) } else { PageEntry(word) };
        self.words(self.argument.page_list, first, len).into_iter().map(entry).collect()
    }

    fn read_page_scores(&self, lane: LaneId, reduced: bool) -> Vec<f32> {
        let (i, pages) = self.lane(lane);
        let (array, heads) = match reduced {
            true => (self.argument.reduced, self.shape.geometry.kv_heads),
            false => (self.argument.page_scores, self.shape.q_heads),
        };
        let of_head = |head| self.words(array, (i * heads + head) * self.argument.max_pages as usize, pages);
        (0..heads).flat_map(of_head).map(f32::from_bits).collect()
    }

    fn read_token_logits(&self, lane: LaneId) -> Vec<f32> {
        let (i, pages) = self.lane(lane);
        let heads = self.shape.q_heads;
        let words = |head| {
            let first = (i * heads + head) * self.argument.max_tokens as usize / 2;
            self.words(self.argument.token_logits, first, pages * PAGE_TOKENS / 2)
        };
        let pair = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| f16::from_bits(bits).to_f32());
        (0..heads).flat_map(words).flat_map(pair).collect()
    }
}
