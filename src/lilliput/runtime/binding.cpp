// The Python binding of the C runtime: one class, `Model`. lilliput.runtime.session is what users meet.
#include <cstdint>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "lil.h"

namespace nb = nanobind;
using namespace nb::literals;

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Inputs = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

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

    void run(Bytes arena, Inputs inputs, Outputs outputs) const {
        if (inputs.shape(0) != outputs.shape(0)) {
            raise("InputError", "as many outputs as inputs are needed");
        }
        lil_status status = LIL_OK;
        {
            nb::gil_scoped_release release;
            for (size_t i = 0; i < inputs.shape(0) && status == LIL_OK; i++) {
                status = lil_run(&model_, arena.data(), arena.size(), inputs.data() + i * inputs.shape(1),
                                 inputs.shape(1), outputs.data() + i * outputs.shape(1),
                                 outputs.shape(1) * sizeof(float));
            }
        }
        if (status != LIL_OK) {
            raise("InputError", describe(status, 0));
        }
    }

    nb::bytes metadata() const { return nb::bytes(model_.metadata, model_.metadata_bytes); }
    nb::bytes golden_inputs() const {
        return nb::bytes(model_.golden_inputs, model_.num_golden * lil_input_bytes(&model_));
    }
    nb::bytes golden_outputs() const {
        return nb::bytes(model_.golden_outputs, model_.num_golden * lil_output_bytes(&model_));
    }
    const lil_model &get() const { return model_; }

  private:
    Py_buffer view_{};
    lil_model model_{};
};

} // namespace

NB_MODULE(_lil, m) {
    m.doc() = "The C runtime. Use lilliput.open; this is what it is made of.";
    m.attr("ALIGNMENT") = LIL_ALIGNMENT;
    nb::class_<Model>(m, "Model", "A verified file. It keeps the buffer that it was made from, exported and unchanged.")
        .def(nb::init<nb::object>(), "file"_a, "Verify `file` (any contiguous bytes). Raises ArtifactError.")
        .def("run", &Model::run, "arena"_a.noconvert(), "inputs"_a.noconvert(), "outputs"_a.noconvert(),
             "Run each row of `inputs` (uint8) into that row of `outputs` (float32), without the GIL. `arena`: uint8,\n"
             "arena_bytes of them at a multiple of ALIGNMENT, used by no other call meanwhile. Raises InputError.")
        .def_prop_ro("arena_bytes", [](const Model &self) { return lil_arena_bytes(&self.get()); })
        .def_prop_ro("input_rows", [](const Model &self) { return self.get().input_rows; })
        .def_prop_ro("input_cols", [](const Model &self) { return self.get().input_cols; })
        .def_prop_ro("output_cols", [](const Model &self) { return self.get().output_cols; })
        .def_prop_ro("num_golden", [](const Model &self) { return self.get().num_golden; })
        .def_prop_ro("metadata", &Model::metadata, "The JSON text, not verified.")
        .def_prop_ro("golden_inputs", &Model::golden_inputs, "All golden inputs, uint8.")
        .def_prop_ro("golden_outputs", &Model::golden_outputs, "All golden outputs, little-endian float32.");
}
