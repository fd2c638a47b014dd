//! The measurements behind the frame format. Medians, so that a busy machine disturbs them little:
//! `MARTLET_FIGURES_FROM=FILE cargo test --release -p martlet-image --test figures -- --ignored --nocapture`

use martlet_image::{PAGE_SIZE, is_zero};
use std::time::{Duration, Instant};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    let path = std::env::var_os("MARTLET_FIGURES_FROM").expect("MARTLET_FIGURES_FROM names a file");
    let bytes = std::fs::read(path).expect("the file can be read");
    let pages: Vec<&[u8]> = bytes
        .chunks_exact(PAGE_SIZE)
        .filter(|page| !is_zero(page))
        .take(20_000)
        .collect();
    for level in [1, 2, 3] {
        let mut compressor = zstd::bulk::Compressor::new(level).expect("a compressor");
        let mut decompressor = zstd::bulk::Decompressor::new().expect("a decompressor");
        for frame_pages in [1, 4, 8, 16] {
            let (mut encode, mut decode, mut verify, mut stored) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for frame in pages.chunks_exact(frame_pages) {
                let content = frame.concat();
                let start = Instant::now();
                let compressed = compressor.compress(&content).expect("it compresses");
                encode.push(start.elapsed());
                stored += compressed.len();
                let start = Instant::now();
                let again = decompressor
                    .decompress(&compressed, content.len())
                    .expect("it decompresses");
                decode.push(start.elapsed());
                let start = Instant::now();
                assert_ne!(martlet_image::FrameId::of(&again).0, [0; 32]);
                verify.push(start.elapsed());
            }
            let content = encode.len() * frame_pages * PAGE_SIZE;
            println!(
                "level {level}, {frame_pages:2} pages: ratio {:.3}, compress {:?}, decompress {:?}, verify {:?}",
                content as f64 / stored as f64,
                median(encode),
                median(decode),
                median(verify)
            );
        }
    }
}
