/* From a matrix to register tiles: how many rows and blocks each has, and columns that end within a
 * vector. */

/* Rows of the next tile when `left` rows remain: tiles of nearly equal height. */
FL_INLINE int FL_T(tile_rows)(int64_t left)
{
    int64_t tiles = (left + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
    return (int)((left + tiles - 1) / tiles);
}

/* Load / store of vector `v` (valid columns end at `columns`). */
FL_INLINE vec FL_T(load_column)(const real *p, int64_t column, int64_t columns)
{
    if (column + FL_LANES <= columns)
        return v_load(p + column);
    return column < columns ? v_load_n(p + column, (int)(columns - column)) : v_zero();
}
FL_INLINE void FL_T(store_column)(real *p, vec value, int64_t column, int64_t columns)
{
    if (column + FL_LANES <= columns)
        v_store(p + column, value);
    else if (column < columns)
        v_store_n(p + column, value, (int)(columns - column));
}

/* Call `tile(argument, vectors, rows, blocks, row, block)` with constants, so that each height is
 * its own code. */
#define FL_TILE_OF_HEIGHT(height, tile, argument, nv, row, block)                                  \
    case height:                                                                                   \
        if ((height) <= FL_TILE_ROWS)                                                              \
            tile(argument, nv, height, 1, row, block);                                             \
        break
#define FL_TILE_SWITCH(mr, ...)                                                                    \
    switch (mr) {                                                                                  \
        FL_TILE_OF_HEIGHT(1, __VA_ARGS__);                                                         \
        FL_TILE_OF_HEIGHT(2, __VA_ARGS__);                                                         \
        FL_TILE_OF_HEIGHT(3, __VA_ARGS__);                                                         \
        FL_TILE_OF_HEIGHT(4, __VA_ARGS__);                                                         \
        FL_TILE_OF_HEIGHT(5, __VA_ARGS__);                                                         \
        FL_TILE_OF_HEIGHT(6, __VA_ARGS__);                                                         \
    }

/* All tiles of `count` blocks: block i of the walk is first + i, or end - 1 - i when descending. A
 * single row takes two blocks at once: four chains of FMAs do not hide the latency, eight do. */
#define FL_TILE_WALK(tile, argument, nv, n_rows, first, end, descending)                           \
    do {                                                                                           \
        int64_t done_ = 0, count_ = (end) - (first);                                               \
        if ((n_rows) == 1)                                                                         \
            for (; done_ + 2 <= count_; done_ += 2)                                                \
                tile(argument, nv, 1, 2, 0, (descending) ? (end) - done_ - 2 : (first) + done_);   \
        for (; done_ < count_; done_++) {                                                          \
            int64_t block_ = (descending) ? (end) - done_ - 1 : (first) + done_;                   \
            for (int64_t row_ = 0; row_ < (n_rows);) {                                             \
                int mr_ = FL_T(tile_rows)((n_rows) - row_);                                        \
                FL_TILE_SWITCH(mr_, tile, argument, nv, row_, block_)                              \
                row_ += mr_;                                                                       \
            }                                                                                      \
        }                                                                                          \
    } while (0)
