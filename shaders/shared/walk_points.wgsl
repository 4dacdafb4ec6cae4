// A team takes the V rows of one block, at most eight, whose codes name points of V weights: a code
// is looked up once, and its point multiplied with one value of each activation.

fn multiply(block: u32, id: Invocation) {
    fill_table(id.thread, THREADS);
    workgroupBarrier();
    let columns = extent();
    for (var step = 0u; step < BLOCK_ROWS / ROWS; step += teams(id)) {
        let row = (block * (BLOCK_ROWS / ROWS) + step + team(id)) * V;
        var sums: array<f32, COLUMNS * 8u>;
        // unroll
        for (var i = 0u; i < COLUMNS * 8u; i += 1u) {
            sums[i] = 0.0;
        }
        for (var chunk = lane(id); chunk < COLS / 32u; chunk += lanes(id)) {
            let raw = load_raw(min(row, HEIGHT - 1u), chunk);
            var x: array<vec4<u32>, COLUMNS * 2u>;
            var first: array<vec4<i32>, COLUMNS>;
            var last: array<vec4<i32>, COLUMNS>;
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let at = (min(c, columns - 1u) * COLS + chunk * 32u) / 16u;
                x[2u * c] = input[at];
                x[2u * c + 1u] = input[at + 1u];
            }
            // unroll
            for (var j = 0u; j < 32u; j += 1u) {
                var code = raw.words[j * WIDTH / 32u] >> (j * WIDTH % 32u);
                if (j * WIDTH % 32u + WIDTH > 32u) {
                    code |= raw.words[j * WIDTH / 32u + 1u] << ((32u - j * WIDTH % 32u) % 32u);
                }
                let low = four(code, 0u);
                let high = four(code, 1u);
                // unroll
                for (var c = 0u; c < COLUMNS; c += 1u) {
                    let value = extractBits(i32(x[2u * c + j / 16u][j / 4u % 4u]), j % 4u * 8u, 8u);
                    first[c] += low * value;
                    last[c] += high * value;
                }
            }
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let scale = scales_of(min(c, columns - 1u), chunk * 32u).x;
                // unroll
                for (var t = 0u; t < 4u; t += 1u) {
                    sums[c * 8u + t] += f32(first[c][t]) * scale * norm_of(row + t, chunk);
                    sums[c * 8u + 4u + t] += f32(last[c][t]) * scale * norm_of(row + 4u + t, chunk);
                }
            }
        }
        // unroll
        for (var c = 0u; c < COLUMNS; c += 1u) {
            // unroll
            for (var t = 0u; t < 8u; t += 1u) {
                let sum = reduce(id, sums[c * 8u + t]) * norm_of_row(row + t);
                let is_ours = lane(id) == 0u && step + team(id) < BLOCK_ROWS / ROWS;
                if (is_ours && t < V && row + t < HEIGHT && c < columns) {
                    put(c * OUT_STRIDE + OUT_OFFSET + row + t, sum + bias_of(row + t));
                }
            }
        }
    }
}

// The norm of 32 weights, where a row has several.
fn norm_of(row: u32, chunk: u32) -> f32 {
    if (GROUP >= COLS) {
        return 1.0;
    }
    return half_of(min(row, HEIGHT - 1u) * (COLS / GROUP) + chunk * 32u / GROUP);
}

// The norm of a row that has one.
fn norm_of_row(row: u32) -> f32 {
    if (GROUP < COLS) {
        return 1.0;
    }
    return half_of(min(row, HEIGHT - 1u));
}

fn half_of(at: u32) -> f32 {
    return unpack2x16float(norms[at / 2u] >> (at % 2u * 16u)).x;
}
