// The Python binding of the C runtime: one class, `Model`. lilliput.runtime.session is what users meet.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "lil.h"
#include "peak.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Inputs = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Times = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

// Of an op that threads share: some ten microseconds of work.
constexpr size_t MIN_ELEMENTS = 1 << 16;

// Raise `kind` of lilliput.errors with one line.
[[noreturn]] void raise(const char *kind, const std::string &message) {
    nb::object type = nb::module_::import_("lilliput.errors").attr(kind);
    PyErr_SetString(type.ptr(), message.c_str());
    throw nb::python_error();
}

std::string describe(lil_status status, uint32_t where) {
    std::string message = lil_status_message(status);
    if (const char *record = lil_status_record(status)) {
        message += std::string(" (") + record + " " + std::to_string(where) + ")";
    }
    return message;
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        if (lil_isa_available(static_cast<lil_isa>(isa))) {
            names.emplace_back(lil_isa_name(static_cast<lil_isa>(isa)));
        }
    }
    return names;
}

lil_isa isa_of(const std::string &name) {
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        if (name == lil_isa_name(static_cast<lil_isa>(isa)) && lil_isa_available(static_cast<lil_isa>(isa))) {
            return static_cast<lil_isa>(isa);
        }
    }
    std::string known;
    for (const std::string &isa : isas()) {
        known += (known.empty() ? "" : ", ") + isa;
    }
    raise("InputError", "'" + name + "' is no instruction set of this build and processor; allowed: " + known);
}

void run_on(void *threads, void (*task)(void *, size_t), void *argument) {
    static_cast<Threads *>(threads)->run(task, argument);
}

// Examples that the threads of a team take one after another, each with an arena of its own.
struct Batch {
    const lil_model *model;
    uint8_t *arena;
    const uint8_t *inputs;
    float *outputs;
    size_t count;
    std::atomic<size_t> next{0};
    std::atomic<int> status{LIL_OK};

    size_t arena_bytes() const { return lil_arena_bytes(model, 1); } // a multiple of the alignment

    void run(size_t thread) {
        lil_context context{};
        context.arena_bytes = arena_bytes();
        context.arena = arena + thread * context.arena_bytes;
        const size_t input_bytes = lil_input_bytes(model), output_bytes = lil_output_bytes(model);
        for (size_t i = next++; i < count && status == LIL_OK; i = next++) {
            const lil_status result = lil_run(model, &context, inputs + i * input_bytes, input_bytes,
                                              outputs + i * (output_bytes / sizeof(float)), output_bytes);
            if (result != LIL_OK) {
                status = result;
            }
        }
    }
};

// Some sequences of tokens that are run together: what they take of each array.
struct Pack {
    const uint32_t *tokens, *lengths;
    size_t num_sequences;
    float *outputs;
};

// Packs that the threads of a team take one after another, each thread with an arena of its own.
struct Packs {
    const lil_model *model;
    uint8_t *arena;
    size_t arena_bytes; // of each thread, a multiple of the alignment
    const std::vector<Pack> &packs;
    std::atomic<size_t> next{0};
    std::atomic<int> status{LIL_OK};

    void run(size_t thread) {
        const lil_context context = {arena + thread * arena_bytes, arena_bytes, nullptr, nullptr, nullptr};
        for (size_t i = next++; i < packs.size() && status == LIL_OK; i = next++) {
            const lil_status result = run_pack(model, context, packs[i]);
            if (result != LIL_OK) {
                status = result;
            }
        }
    }

    static lil_status run_pack(const lil_model *model, const lil_context &context, const Pack &pack) {
        return lil_run_sequences(model, &context, pack.tokens, pack.lengths, pack.num_sequences, pack.outputs,
                                 pack.num_sequences * lil_output_bytes(model));
    }
};

// Notes the time at which each op ended.
struct Stopwatch {
    std::chrono::steady_clock::time_point last;
    int64_t *nanoseconds;

    static void after_op(void *self, uint32_t op) {
        auto *watch = static_cast<Stopwatch *>(self);
        const auto now = std::chrono::steady_clock::now();
        watch->nanoseconds[op] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - watch->last).count();
        watch->last = std::chrono::steady_clock::now();
    }
};

// An opened file: holds on to the buffer it lies in.
class Model {
  public:
    explicit Model(nb::object file) {
        if (PyObject_GetBuffer(file.ptr(), &view_, PyBUF_SIMPLE) != 0) {
            throw nb::python_error();
        }
        static const uint8_t nothing = 0; // an empty buffer may have no address
        const void *bytes = view_.buf != nullptr ? view_.buf : &nothing;
        lil_status status;
        {
            nb::gil_scoped_release release;
            status = lil_open(&model_, bytes, static_cast<size_t>(view_.len));
        }
        if (status != LIL_OK) {
            PyBuffer_Release(&view_);
            raise("ArtifactError", describe(status, model_.where));
        }
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;
    ~Model() { PyBuffer_Release(&view_); }

    void use_isa(const std::string &name) { lil_use_isa(&model_, isa_of(name)); }

    void run(Bytes arena, Inputs inputs, Outputs outputs, Threads *threads) const {
        check(inputs, outputs);
        const size_t count = inputs.shape(0), num_threads = threads == nullptr ? 1 : threads->size();
        lil_status status = LIL_OK;
        {
            nb::gil_scoped_release release;
            if (num_threads > 1 && count >= num_threads &&
                arena.size() / num_threads >= lil_arena_bytes(&model_, 1)) {
                Batch batch{&model_, arena.data(), inputs.data(), outputs.data(), count};
                threads->run([](void *all, size_t thread) { static_cast<Batch *>(all)->run(thread); }, &batch);
                status = static_cast<lil_status>(batch.status.load());
            } else {
                const lil_team team = {num_threads, run_on, threads, MIN_ELEMENTS};
                const lil_context context = {arena.data(), arena.size(), num_threads > 1 ? &team : nullptr, nullptr,
                                             nullptr};
                for (size_t i = 0; i < count && status == LIL_OK; i++) {
                    status = run_one(context, inputs, outputs, i);
                }
            }
        }
        accept(status);
    }

    void run_sequences(Bytes arena, Words tokens, Words lengths, Words counts, Outputs outputs, Threads *threads) const {
        size_t most = 0;
        const std::vector<Pack> packs = divide(tokens, lengths, counts, outputs, &most);
        const size_t num_threads = threads == nullptr ? 1 : threads->size();
        lil_status status = LIL_OK;
        {
            nb::gil_scoped_release release;
            const size_t each = lil_sequence_arena_bytes(&model_, 1, most);
            if (num_threads > 1 && packs.size() >= num_threads && arena.size() / num_threads >= each) {
                Packs all{&model_, arena.data(), each, packs};
                threads->run([](void *job, size_t thread) { static_cast<Packs *>(job)->run(thread); }, &all);
                status = static_cast<lil_status>(all.status.load());
            } else {
                const lil_team team = {num_threads, run_on, threads, MIN_ELEMENTS};
                const lil_context context = {arena.data(), arena.size(), num_threads > 1 ? &team : nullptr, nullptr,
                                             nullptr};
                for (size_t i = 0; i < packs.size() && status == LIL_OK; i++) {
                    status = Packs::run_pack(&model_, context, packs[i]);
                }
            }
        }
        accept(status);
    }

    void profile_sequences(Bytes arena, Words tokens, Words lengths, Outputs outputs, Times times,
                           Threads *threads) const {
        check_sequences(tokens, lengths, outputs);
        if (times.shape(1) != model_.num_ops) {
            raise("InputError", "one time an op is needed");
        }
        const lil_team team = {threads == nullptr ? 1 : threads->size(), run_on, threads, MIN_ELEMENTS};
        Stopwatch watch{};
        const lil_context context = {arena.data(), arena.size(), threads == nullptr ? nullptr : &team,
                                     Stopwatch::after_op, &watch};
        const Pack pack = {tokens.data(), lengths.data(), lengths.shape(0), outputs.data()};
        lil_status status = LIL_OK;
        {
            nb::gil_scoped_release release;
            for (size_t i = 0; i < times.shape(0) && status == LIL_OK; i++) {
                watch.nanoseconds = times.data() + i * times.shape(1);
                watch.last = std::chrono::steady_clock::now();
                status = Packs::run_pack(&model_, context, pack);
            }
        }
        accept(status);
    }

    void profile(Bytes arena, Inputs inputs, Outputs outputs, Times times, Threads *threads) const {
        check(inputs, outputs);
        if (times.shape(0) != inputs.shape(0) || times.shape(1) != model_.num_ops) {
            raise("InputError", "as many rows of times as inputs are needed, and one time an op");
        }
        const lil_team team = {threads == nullptr ? 1 : threads->size(), run_on, threads, MIN_ELEMENTS};
        Stopwatch watch{};
        const lil_context context = {arena.data(), arena.size(), threads == nullptr ? nullptr : &team,
                                     Stopwatch::after_op, &watch};
        lil_status status = LIL_OK;
        {
            nb::gil_scoped_release release;
            for (size_t i = 0; i < inputs.shape(0) && status == LIL_OK; i++) {
                watch.nanoseconds = times.data() + i * times.shape(1);
                watch.last = std::chrono::steady_clock::now();
                status = run_one(context, inputs, outputs, i);
            }
        }
        accept(status);
    }

    nb::bytes metadata() const { return nb::bytes(model_.metadata, model_.metadata_bytes); }
    nb::bytes golden_inputs() const {
        return nb::bytes(model_.golden_inputs, model_.golden_input_bytes);
    }
    nb::bytes golden_outputs() const {
        return nb::bytes(model_.golden_outputs, model_.num_golden * lil_output_bytes(&model_));
    }
    const lil_model &get() const { return model_; }

  private:
    void check(const Inputs &inputs, const Outputs &outputs) const {
        if (inputs.shape(0) != outputs.shape(0)) {
            raise("InputError", "as many outputs as inputs are needed");
        }
        if (inputs.shape(1) != lil_input_bytes(&model_)) {
            accept(LIL_INPUT_SIZE);
        }
        if (outputs.shape(1) != model_.output_cols) {
            accept(LIL_OUTPUT_SIZE);
        }
    }

    // As many tokens as the lengths add up to, and an output a sequence.
    void check_sequences(const Words &tokens, const Words &lengths, const Outputs &outputs) const {
        uint64_t sum = 0; // of at most 2^32 numbers below 2^32
        for (size_t i = 0; i < lengths.shape(0); i++) {
            sum += lengths.data()[i];
        }
        if (sum != tokens.shape(0)) {
            raise("InputError", "as many tokens as the lengths add up to are needed");
        }
        if (outputs.shape(0) != lengths.shape(0) || outputs.shape(1) != model_.output_cols) {
            accept(LIL_OUTPUT_SIZE);
        }
    }

    // The packs, `counts` sequences each, and the tokens of the largest.
    std::vector<Pack> divide(const Words &tokens, const Words &lengths, const Words &counts, Outputs &outputs,
                             size_t *most) const {
        check_sequences(tokens, lengths, outputs);
        std::vector<Pack> packs;
        size_t sequence = 0, token = 0;
        for (size_t i = 0; i < counts.shape(0); i++) {
            const size_t count = counts.data()[i], before = token;
            if (count > lengths.shape(0) - sequence) {
                raise("InputError", "the packs have more sequences than there are");
            }
            packs.push_back({tokens.data() + token, lengths.data() + sequence, count,
                             outputs.data() + sequence * outputs.shape(1)});
            for (size_t end = sequence + count; sequence < end; sequence++) {
                token += lengths.data()[sequence];
            }
            *most = std::max(*most, token - before);
        }
        if (sequence != lengths.shape(0)) {
            raise("InputError", "the packs have fewer sequences than there are");
        }
        return packs;
    }

    static void accept(lil_status status) {
        if (status != LIL_OK) {
            raise("InputError", describe(status, 0));
        }
    }

    lil_status run_one(const lil_context &context, const Inputs &inputs, const Outputs &outputs, size_t i) const {
        return lil_run(&model_, &context, inputs.data() + i * inputs.shape(1), inputs.shape(1),
                       outputs.data() + i * outputs.shape(1), outputs.shape(1) * sizeof(float));
    }

    Py_buffer view_{};
    lil_model model_{};
};

} // namespace

NB_MODULE(_lil, m) {
    m.doc() = "The C runtime. Use lilliput.open; this is what it is made of.";
    m.attr("ALIGNMENT") = LIL_ALIGNMENT;
    m.def("isas", &isas, "The instruction sets of this build that this processor has, the best one last.");
    m.def(
        "peak_macs_per_second", [](const std::string &isa) { return lil_peak_macs_per_second(isa_of(isa)); }, "isa"_a,
        "Int8 multiply-adds a second that one core reaches with an instruction set, from registers. Takes 50 ms.\n"
        "Raises InputError.");
    nb::class_<Threads>(m, "Threads", "Threads that share a run. One run at a time.")
        .def(nb::new_([](size_t num_threads) {
                 if (num_threads < 1) {
                     raise("InputError", "a team needs at least one thread");
                 }
                 try {
                     return new Threads(num_threads);
                 } catch (const std::system_error &error) {
                     raise("FailureError", std::string("no more threads can be started: ") + error.what());
                 }
             }),
             "num_threads"_a, "Start them. Raises InputError and FailureError.");
    nb::class_<Model>(m, "Model", "A verified file. It keeps the buffer that it was made from, exported and unchanged.")
        .def(nb::init<nb::object>(), "file"_a, "Verify `file` (any contiguous bytes). Raises ArtifactError.")
        .def("use_isa", &Model::use_isa, "name"_a, "Take the kernels of this instruction set. Raises InputError.")
        .def("run", &Model::run, "arena"_a.noconvert(), "inputs"_a.noconvert(), "outputs"_a.noconvert(),
             "threads"_a.none() = nb::none(),
             "Run each row of `inputs` (uint8) into that row of `outputs` (float32), without the GIL. `arena`: uint8,\n"
             "arena_bytes of them a thread at a multiple of ALIGNMENT, used by no other call meanwhile, like `threads`,\n"
             "which share the rows, or each row's ops where the rows are few. Raises InputError.")
        .def("profile", &Model::profile, "arena"_a.noconvert(), "inputs"_a.noconvert(), "outputs"_a.noconvert(),
             "times"_a.noconvert(), "threads"_a.none() = nb::none(),
             "As run, one row after another, and the nanoseconds of each op into `times`, int64 [rows, num_ops].")
        .def("run_sequences", &Model::run_sequences, "arena"_a.noconvert(), "tokens"_a.noconvert(),
             "lengths"_a.noconvert(), "counts"_a.noconvert(), "outputs"_a.noconvert(), "threads"_a.none() = nb::none(),
             "Run a sequence program: `tokens` (uint32) of all sequences, their `lengths`, and how many of them are run\n"
             "together each time, into the rows of `outputs` (float32). `arena`: sequence_arena_bytes of the largest pack\n"
             "for each thread. Threads share the packs, or the ops where the packs are few. Raises InputError.")
        .def("profile_sequences", &Model::profile_sequences, "arena"_a.noconvert(), "tokens"_a.noconvert(),
             "lengths"_a.noconvert(), "outputs"_a.noconvert(), "times"_a.noconvert(), "threads"_a.none() = nb::none(),
             "Run all sequences together once for each row of `times` (int64 [repeats, num_ops]): the ops' nanoseconds.")
        .def(
            "sequence_arena_bytes",
            [](const Model &self, size_t num_tokens) { return lil_sequence_arena_bytes(&self.get(), 1, num_tokens); },
            "num_tokens"_a, "Work memory of one thread for so many tokens together.")
        .def_prop_ro("max_tokens", [](const Model &self) { return self.get().max_tokens; })
        .def_prop_ro("num_token_ids", [](const Model &self) { return self.get().num_token_ids; })
        .def_prop_ro("vocabulary_tokens", [](const Model &self) { return self.get().vocabulary_tokens; })
        .def_prop_ro("vocabulary_offset", [](const Model &self) { return self.get().vocabulary - self.get().file; },
                     "Where the vocabulary's section begins in the file.")
        .def_prop_ro("isa", [](const Model &self) { return lil_isa_name(self.get().isa); })
        .def_prop_ro("num_ops", [](const Model &self) { return self.get().num_ops; })
        .def_prop_ro("arena_bytes", [](const Model &self) { return lil_arena_bytes(&self.get(), 1); })
        .def_prop_ro("input_rows", [](const Model &self) { return self.get().input_rows; })
        .def_prop_ro("input_cols", [](const Model &self) { return self.get().input_cols; })
        .def_prop_ro("output_cols", [](const Model &self) { return self.get().output_cols; })
        .def_prop_ro("num_golden", [](const Model &self) { return self.get().num_golden; })
        .def_prop_ro("metadata", &Model::metadata, "The JSON text, not verified.")
        .def_prop_ro("golden_inputs", &Model::golden_inputs, "All golden inputs, uint8.")
        .def_prop_ro("golden_outputs", &Model::golden_outputs, "All golden outputs, little-endian float32.");
}
