// A team takes ROWS rows.
// import product

fn multiply(block: u32, id: Invocation) {
    fill_table(id.thread, THREADS);
    workgroupBarrier();
    let columns = extent();
    for (var step = 0u; step < BLOCK_ROWS; step += teams(id) * ROWS) {
        let row = block * BLOCK_ROWS + step + team(id) * ROWS;
        var sums: array<f32, ROWS * COLUMNS>;
        // unroll
        for (var i = 0u; i < ROWS * COLUMNS; i += 1u) {
            sums[i] = 0.0;
        }
        for (var chunk = lane(id); chunk < COLS / CHUNK; chunk += lanes(id)) {
            var raw: array<Raw, ROWS>;
            // unroll
            for (var r = 0u; r < ROWS; r += 1u) {
                raw[r] = load_raw(min(row + r, HEIGHT - 1u), chunk);
            }
            // unroll
            for (var part = 0u; part < CHUNK / 32u; part += 1u) {
                let at = chunk * CHUNK + part * 32u;
                var runs: array<Run, ROWS>;
                // unroll
                for (var r = 0u; r < ROWS; r += 1u) {
                    runs[r] = run_of(raw[r], part);
                }
                // unroll
                for (var c = 0u; c < COLUMNS; c += 1u) {
                    let column = min(c, columns - 1u);
                    let x = input[(column * COLS + at) / 16u];
                    let y = input[(column * COLS + at) / 16u + 1u];
                    let scale = scales_of(column, at);
                    // unroll
                    for (var r = 0u; r < ROWS; r += 1u) {
                        sums[r * COLUMNS + c] += product(runs[r], x, y, scale);
                    }
                }
            }
        }
        // unroll
        for (var r = 0u; r < ROWS; r += 1u) {
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let sum = reduce(id, sums[r * COLUMNS + c]);
                let is_ours = lane(id) == 0u && step + team(id) * ROWS + r < BLOCK_ROWS;
                if (is_ours && row + r < HEIGHT && c < columns) {
                    put(c * OUT_STRIDE + OUT_OFFSET + row + r, sum + bias_of(row + r));
                }
            }
        }
    }
}
