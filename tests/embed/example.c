/* Inference from C: a layer with weights made here, a ragged batch in one call, then the same
 * sequences one time step at a time, which gives the same bits. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastlstm.h"

enum { INPUT = 3, HIDDEN = 8, SEQUENCES = 2, ROWS = 9 };

static int failed(const char *what, fl_status status)
{
    fprintf(stderr, "%s: %s\n", what, fl_status_string(status));
    return 1;
}

/* Any numbers will do here; a real program reads what training wrote. */
static void fill(float *values, int64_t count, unsigned seed)
{
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(seed >> 8) / (float)(1 << 24) - 0.5f;
    }
}

/* x and y (ROWS, ..): sequence 0 is rows 0 .. 3, sequence 1 rows 4 .. 8. */
static fl_status predict(const fl_recurrent *layer, const float *x, float *y)
{
    static const int64_t start[SEQUENCES] = {0, 4}, length[SEQUENCES] = {4, 5};
    fl_forward call;
    memset(&call, 0, sizeof call);
    call.x_rows.n = SEQUENCES;
    call.x_rows.start = start;
    call.x_rows.length = length;
    call.x = x;
    call.x_total = ROWS;
    call.y_start = start;
    call.y = y;
    call.y_total = ROWS;
    return fl_recurrent_forward(layer, &call);
}

/* The second sequence, row by row. */
static fl_status follow(const fl_recurrent *layer, const float *x, float *y)
{
    fl_stream *stream;
    fl_status status = fl_stream_create(layer, 1, &stream);
    if (status != FL_OK)
        return status;
    for (int row = 4; row < ROWS && status == FL_OK; row++)
        status = fl_stream_step(stream, x + row * INPUT, y + row * HIDDEN);
    fl_stream_destroy(stream);
    return status;
}

static int run(const fl_recurrent *layer)
{
    float x[ROWS * INPUT], whole[ROWS * HIDDEN], stepped[ROWS * HIDDEN];
    fill(x, ROWS * INPUT, 2);
    fl_status status = predict(layer, x, whole);
    if (status != FL_OK)
        return failed("predict", status);
    status = follow(layer, x, stepped);
    if (status != FL_OK)
        return failed("follow", status);
    size_t first = 4 * HIDDEN, count = 5 * HIDDEN;
    if (memcmp(whole + first, stepped + first, count * sizeof(float)) != 0) {
        fprintf(stderr, "the stream and the whole sequence differ\n");
        return 1;
    }
    printf("last output of sequence 1: %f %f ...\n", (double)whole[(ROWS - 1) * HIDDEN],
           (double)whole[(ROWS - 1) * HIDDEN + 1]);
    return 0;
}

int main(void)
{
    const char *isa;
    fl_recurrent *layer;
    fl_recurrent_config config;
    memset(&config, 0, sizeof config);
    config.cell = "lstm";
    config.input_size = INPUT;
    config.hidden_size = HIDDEN;
    config.num_layers = 1;
    config.bias = 1;
    config.dtype = FL_FLOAT32;
    fl_status status = fl_isa_name(&isa);
    if (status != FL_OK)
        return failed("instruction set", status);
    printf("%s, %d threads\n", isa, (int)fl_get_num_threads());
    status = fl_recurrent_create(&config, &layer);
    if (status != FL_OK)
        return failed("create", status);
    int64_t count = fl_recurrent_n_parameters(layer);
    float *parameters = malloc((size_t)count * sizeof(float));
    if (!parameters)
        return failed("parameters", FL_ERR_NOMEM);
    fill(parameters, count, 1);
    status = fl_recurrent_load(layer, parameters);
    free(parameters); /* the layer keeps its own copy */
    int result = status == FL_OK ? run(layer) : failed("load", status);
    fl_recurrent_destroy(layer);
    return result;
}
