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
#if FL_TILE_ROWS == 6
#define FL_TILE_SWITCH(tile, argument, nv, mr, row, block)                                         \
    switch (mr) {                                                                                  \
    case 1:                                                                                        \
        tile(argument, nv, 1, 1, row, block);                                                      \
        break;                                                                                     \
    case 2:                                                                                        \
        tile(argument, nv, 2, 1, row, block);                                                      \
        break;                                                                                     \
    case 3:                                                                                        \
        tile(argument, nv, 3, 1, row, block);                                                      \
        break;                                                                                     \
    case 4:                                                                                        \
        tile(argument, nv, 4, 1, row, block);                                                      \
        break;                                                                                     \
    case 5:                                                                                        \
        tile(argument, nv, 5, 1, row, block);                                                      \
        break;                                                                                     \
    default:                                                                                       \
        tile(argument, nv, 6, 1, row, block);                                                      \
    }
#else
#define FL_TILE_SWITCH(tile, argument, nv, mr, row, block)                                         \
    switch (mr) {                                                                                  \
    case 1:                                                                                        \
        tile(argument, nv, 1, 1, row, block);                                                      \
        break;                                                                                     \
    case 2:                                                                                        \
        tile(argument, nv, 2, 1, row, block);                                                      \
        break;                                                                                     \
    default:                                                                                       \
        tile(argument, nv, 3, 1, row, block);                                                      \
    }
#endif

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
                FL_TILE_SWITCH(tile, argument, nv, mr_, row_, block_)                              \
                row_ += mr_;                                                                       \
            }                                                                                      \
        }                                                                                          \
    } while (0)
