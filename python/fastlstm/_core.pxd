# Declarations of fastlstm.h, the only C header that the binding sees.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "fastlstm.h" nogil:
    ctypedef int fl_status
    int FL_OK, FL_ERR_ARGUMENT, FL_ERR_NOMEM, FL_ERR_OVERFLOW
    int FL_ERR_UNKNOWN_CELL, FL_ERR_UNKNOWN_ISA, FL_ERR_ISA_UNAVAILABLE, FL_ERR_TAPE
    int FL_FLOAT32, FL_FLOAT64

    const char *fl_status_string(fl_status status)
    fl_status fl_isa_name(const char **name)
    fl_status fl_isa_available(int32_t index, const char **name, int32_t *available)
    int32_t fl_cpu_amx()
    void fl_set_num_threads(int32_t n_threads)
    int32_t fl_get_num_threads()
    int32_t fl_has_openmp()

    const char *fl_cell_name(int32_t index)

    ctypedef struct fl_recurrent:
        pass
    ctypedef struct fl_tape:
        pass
    ctypedef struct fl_stream:
        pass

    ctypedef struct fl_recurrent_config:
        const char *cell
        int64_t input_size
        int64_t hidden_size
        int64_t num_layers
        int32_t bidirectional
        int32_t bias
        int32_t dtype
        double recurrent_dropout
        int64_t proj_size
        int64_t output_proj_size
        int32_t truncated
        int32_t layer_norm
        double zoneout_h
        double zoneout_c
        int32_t precision
        int32_t batch_invariant
        double dropout

    ctypedef struct fl_parameter:
        int32_t kind
        int32_t layer
        int32_t direction
        int64_t offset
        int64_t rows
        int64_t columns

    fl_status fl_recurrent_create(const fl_recurrent_config *config, fl_recurrent **layer)
    void fl_recurrent_destroy(fl_recurrent *layer)
    int32_t fl_recurrent_n_states(const fl_recurrent *layer)
    int64_t fl_recurrent_output(const fl_recurrent *layer)
    int64_t fl_recurrent_n_parameters(const fl_recurrent *layer)
    int32_t fl_recurrent_n_arrays(const fl_recurrent *layer)
    fl_status fl_recurrent_parameter(const fl_recurrent *layer, int32_t index, fl_parameter *parameter)
    fl_status fl_recurrent_load(fl_recurrent *layer, const void *parameters)

    ctypedef struct fl_sequences:
        int64_t n
        const int64_t *start
        const int64_t *length

    ctypedef struct fl_forward:
        fl_sequences x_rows
        const void *x
        int64_t x_total
        const void *decay
        const int64_t *y_start
        void *y
        int64_t y_total
        const void **states_in
        void **states_out
        fl_tape *tape
        uint64_t random_key
        const int64_t *number
        int64_t first_step
        int32_t expects
        int32_t drops
        int32_t n_threads

    ctypedef struct fl_backward:
        fl_tape *tape
        int64_t n
        const void *parameters
        const void *dy
        const int64_t *dy_start
        int64_t dy_total
        const void **dstates_out
        void *gradients
        void *dx
        const int64_t *dx_start
        int64_t dx_total
        void **dstates_in
        int32_t n_threads

    fl_status fl_recurrent_forward(const fl_recurrent *layer, const fl_forward *call)
    fl_status fl_recurrent_backward(const fl_recurrent *layer, const fl_backward *call)
    const char *fl_recurrent_slot_names(const fl_recurrent *layer)
    const char *fl_recurrent_state_names(const fl_recurrent *layer)
    int FL_RECORD_GATE, FL_RECORD_STATE

    ctypedef struct fl_record:
        int32_t kind
        int32_t index
        int32_t place
        void *out
        const int64_t *start
        int64_t total

    fl_status fl_tape_read(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record)
    fl_status fl_tape_create(fl_tape **tape)
    void fl_tape_destroy(fl_tape *tape)
    int64_t fl_tape_bytes(const fl_tape *tape)
    fl_status fl_recurrent_tape_bytes(const fl_recurrent *layer, int64_t n, int64_t steps, int64_t rows, int32_t decays,
                                      int32_t n_threads, int64_t *bytes)

    fl_status fl_stream_create(const fl_recurrent *layer, int64_t n, fl_stream **stream)
    void fl_stream_destroy(fl_stream *stream)
    fl_status fl_stream_step(fl_stream *stream, const void *x, void *y)
    fl_status fl_stream_step_decay(fl_stream *stream, const void *x, const void *decay, void *y)
    fl_status fl_stream_get(const fl_stream *stream, void **states)
    fl_status fl_stream_set(fl_stream *stream, const void **states)
    fl_status fl_stream_reset(fl_stream *stream, int64_t which)

    fl_status fl_dense_forward(int32_t dtype, int64_t n, int64_t n_in, int64_t out, const void *x,
                               const void *weight, const void *bias, void *y)
    fl_status fl_dense_backward(int32_t dtype, int64_t n, int64_t n_in, int64_t out, const void *x,
                                const void *weight, const void *dy, void *dweight, void *dbias, void *dx)
    int FL_SIGMOID, FL_TANH
    fl_status fl_activate(int32_t dtype, int32_t activation, const void *x, void *y, int64_t count)

    ctypedef struct fl_conv_lstm:
        int32_t dtype
        int32_t bias
        int32_t peephole
        int64_t in_channels
        int64_t hidden_channels
        int64_t height
        int64_t width
        int64_t kernel_height
        int64_t kernel_width

    ctypedef struct fl_conv_tape:
        pass

    ctypedef struct fl_conv_forward:
        const void *parameters
        int64_t n
        int64_t steps
        const int64_t *length
        const void *x
        const void *h_in
        const void *c_in
        void *y
        void *h_out
        void *c_out
        fl_conv_tape *tape
        int32_t n_threads

    ctypedef struct fl_conv_backward:
        fl_conv_tape *tape
        const void *parameters
        int64_t n
        int64_t steps
        const void *dy
        const void *dh_out
        const void *dc_out
        void *gradients
        void *dx
        void *dh_in
        void *dc_in
        int32_t n_threads

    int64_t fl_conv_lstm_n_parameters(const fl_conv_lstm *layer)
    fl_status fl_conv_tape_create(fl_conv_tape **tape)
    void fl_conv_tape_destroy(fl_conv_tape *tape)
    int64_t fl_conv_tape_bytes(const fl_conv_tape *tape)
    fl_status fl_conv_lstm_forward(const fl_conv_lstm *layer, const fl_conv_forward *call)
    fl_status fl_conv_lstm_backward(const fl_conv_lstm *layer, const fl_conv_backward *call)

    ctypedef struct fl_ctc:
        int32_t dtype
        int32_t logits
        int64_t n
        int64_t steps
        int64_t classes
        int64_t blank
        const void *x
        const int64_t *length
        const int64_t *targets
        int64_t target_total
        const int64_t *target_start
        const int64_t *target_length
        double *loss
        void *gradient
        int32_t n_threads

    fl_status fl_ctc_loss(const fl_ctc *call)

    ctypedef struct fl_optimizer_step:
        int32_t dtype
        int32_t rule
        int32_t nesterov
        void *parameters
        const void *gradients
        void *slot0
        void *slot1
        int64_t count
        double learning_rate
        double momentum
        double alpha
        double beta1
        double beta2
        double epsilon
        double weight_decay
        double gradient_scale
        int64_t step
        double mu
        double mu_next
        double mu_product

    fl_status fl_optimize(const fl_optimizer_step *step)
    fl_status fl_softmax_cross_entropy(int32_t dtype, int64_t n, int64_t classes, const void *x,
                                       const int64_t *target, const double *weight, double *loss, void *gradient)
    fl_status fl_sum_squares(int32_t dtype, const void *x, int64_t count, double *sum)
    fl_status fl_sum_steps(int32_t dtype, int64_t n, const int64_t *length, int64_t columns, const void *y,
                           int64_t total, double *sums)
