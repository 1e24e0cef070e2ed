//! What finishing a frame in software costs: the checksum beside etherparse's, and cutting up 64 KiB.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::TcpHeader;
use vswitch::offload::checksum::{self, Sum};
use vswitch::offload::segment::{Checksum, Segmenter};
use vswitch::offload::{Gso, Offload, VNET_HDR_LEN};

/// Ethernet, IPv4, TCP with timestamps.
const HEADERS_LEN: usize = 14 + 20 + 32;

/// A TCP frame as a Linux sender leaves it, of so many bytes in all, and its offload.
fn frame(len: usize) -> (Vec<u8>, Offload) {
    let mut frame = vec![0x5a; len];
    let ip_len = u16::try_from(len - 14).unwrap_or(u16::MAX).to_be_bytes();
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, ip_len[0], ip_len[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame[46] = 8 << 4;
    let mut offload = Offload {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 16,
        gso: Gso::Tcp4,
        gso_size: 1448,
        ..Offload::default()
    };
    assert_eq!(offload.admit(&mut frame, len), Ok(()), "the frame is good");
    (frame, offload)
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1500, 65_000] {
        let bytes = vec![0xa5; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::new("vswitch", len), &bytes, |b, bytes| {
            b.iter(|| Sum::of(black_box(bytes)).checksum());
        });
        let header = TcpHeader::new(1, 2, 3, 4);
        group.bench_with_input(BenchmarkId::new("etherparse", len), &bytes, |b, bytes| {
            b.iter(|| header.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("copy", len), &bytes, |b, bytes| {
            let mut out = vec![0; len];
            b.iter(|| out.copy_from_slice(black_box(bytes)));
        });
    }
    let (frame, offload) = frame(1400);
    assert_eq!(offload.gso, Gso::None, "it fits one segment");
    group.bench_function("finish/1400", |b| {
        let mut frame = frame.clone();
        b.iter(|| checksum::finish(black_box(&mut frame), &offload));
    });
    group.finish();
}

fn segmentation(c: &mut Criterion) {
    let (frame, offload) = frame(HEADERS_LEN + 45 * 1448);
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    for checksum in [Checksum::Complete, Checksum::Partial] {
        group.bench_function(format!("{checksum:?}/65226"), |b| {
            let mut out = vec![0; 2048];
            b.iter(|| {
                let mut count = 0;
                if let Ok(mut segmenter) = Segmenter::new(black_box(&frame), &offload, checksum) {
                    while segmenter.next_into(&mut out).is_some() {
                        count += 1;
                    }
                }
                assert_eq!(count, 45, "all of them");
            });
        });
    }
    group.finish();
}

fn receive(c: &mut Criterion) {
    let (mut frame, offload) = frame(HEADERS_LEN + 45 * 1448);
    let mut header = [0; VNET_HDR_LEN];
    offload.to_virtio(&mut header);
    c.bench_function("receive/plain", |b| {
        b.iter(|| Offload::from_virtio(black_box(&[0; VNET_HDR_LEN]), 60));
    });
    c.bench_function("receive/gso", |b| {
        b.iter(|| {
            let mut offload = Offload::from_virtio(black_box(&header), frame.len())?;
            let len = frame.len();
            offload.admit(&mut frame, len).map(|()| offload)
        });
    });
}

criterion_group!(benches, checksums, segmentation, receive);
criterion_main!(benches);
