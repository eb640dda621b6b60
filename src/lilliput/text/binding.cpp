// The Python binding of the tokenizers' C core. lilliput.text.Tokenizer is what users meet.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "lil_text.h"

namespace nb = nanobind;
using namespace nb::literals;

using Ends = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Merges = nb::ndarray<const uint32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>>;

namespace {

// Raise `kind` of lilliput.errors with one line.
[[noreturn]] void raise(const char *kind, const std::string &message) {
    nb::object type = nb::module_::import_("lilliput.errors").attr(kind);
    PyErr_SetString(type.ptr(), message.c_str());
    throw nb::python_error();
}

// An array that owns what it shows.
Ids array_of(std::vector<uint32_t> &&values) {
    auto owned = std::make_unique<std::vector<uint32_t>>(std::move(values));
    nb::capsule owner(owned.get(), [](void *vector) noexcept { delete static_cast<std::vector<uint32_t> *>(vector); });
    std::vector<uint32_t> *vector = owned.release();
    return Ids(vector->data(), {vector->size()}, owner);
}

// A token to be found in the text, before the model sees it.
struct Added {
    std::string text;
    uint32_t id;
    bool lstrip, rstrip, single_word;
};

// Ascending by bytes, as the core wants it.
std::vector<lil_text_added> in_order(std::vector<Added> &tokens) {
    std::sort(tokens.begin(), tokens.end(), [](const Added &a, const Added &b) { return a.text < b.text; });
    std::vector<lil_text_added> list;
    for (const Added &token : tokens) {
        list.push_back({reinterpret_cast<const uint8_t *>(token.text.data()), static_cast<uint32_t>(token.text.size()),
                        token.id, token.lstrip, token.rstrip, token.single_word});
    }
    return list;
}

// What a tokenizer is made of, but for vocabulary and merges.
struct Settings {
    lil_text_settings plain{};
    std::vector<uint32_t> prefix, suffix;
    std::vector<Added> raw, normalized;

    static Settings wordpiece(bool clean_text, bool handle_chinese_chars, bool strip_accents, bool lowercase,
                              uint32_t unk, uint32_t max_input_chars_per_word) {
        Settings settings;
        settings.plain.kind = LIL_TEXT_WORDPIECE;
        settings.plain.normalizer = {clean_text, handle_chinese_chars, strip_accents, lowercase};
        settings.plain.unk = unk;
        settings.plain.max_input_chars_per_word = max_input_chars_per_word;
        return settings;
    }
    static Settings byte_level_bpe(bool add_prefix_space, bool use_regex) {
        Settings settings;
        settings.plain.kind = LIL_TEXT_BYTE_LEVEL_BPE;
        settings.plain.add_prefix_space = add_prefix_space;
        settings.plain.use_regex = use_regex;
        return settings;
    }
    void add(nb::bytes text, uint32_t id, bool normalize, bool lstrip, bool rstrip, bool single_word) {
        (normalize ? normalized : raw)
            .push_back({std::string(text.c_str(), text.size()), id, lstrip, rstrip, single_word});
    }
    nb::bytes normalize(nb::bytes text) const {
        if (plain.kind != LIL_TEXT_WORDPIECE) {
            return text;
        }
        const size_t capacity = lil_text_normalized_bytes(text.size());
        std::vector<uint8_t> out(capacity);
        const size_t bytes = lil_text_normalize(&plain.normalizer, reinterpret_cast<const uint8_t *>(text.c_str()),
                                                text.size(), out.data(), capacity);
        return nb::bytes(out.data(), bytes);
    }
};

// The bytes of a Python object, which keeps them where they are for as long.
class Buffer {
  public:
    explicit Buffer(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) {
            throw nb::python_error();
        }
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { PyBuffer_Release(&view_); }

    size_t size() const { return static_cast<size_t>(view_.len); }
    const uint8_t *data() const {
        static const uint8_t nothing = 0; // an empty buffer may have no address
        return view_.buf != nullptr ? static_cast<const uint8_t *>(view_.buf) : &nothing;
    }

  private:
    Py_buffer view_{};
};

// A str's UTF-8, which lives as long as the str.
std::pair<const uint8_t *, size_t> utf8_of(nb::handle text, size_t index) {
    const std::string name = "text " + std::to_string(index);
    if (!PyUnicode_Check(text.ptr())) {
        raise("InputError", name + ": is of type " + Py_TYPE(text.ptr())->tp_name + "; must be a str");
    }
    Py_ssize_t bytes = 0;
    const char *data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            throw nb::python_error();
        }
        PyErr_Clear();
        raise("InputError", name + ": has half of a surrogate pair, which no UTF-8 has; must be text");
    }
    if (static_cast<size_t>(bytes) > LIL_TEXT_MAX_BYTES) {
        raise("InputError", name + ": has " + std::to_string(bytes) + " bytes; at most " +
                                std::to_string(LIL_TEXT_MAX_BYTES) + " are allowed");
    }
    return {reinterpret_cast<const uint8_t *>(data), static_cast<size_t>(bytes)};
}

// An opened tokenizer: holds on to the buffers that it was made from.
class Encoder {
  public:
    Encoder(const Settings &settings, nb::handle text, Ends ends, uint32_t model_tokens, Merges merges)
        : settings_(settings), text_(text), ends_(std::move(ends)), merges_(std::move(merges)) {
        lil_text_settings &plain = settings_.plain;
        plain.text = text_.data();
        plain.text_bytes = text_.size();
        plain.ends = ends_.data();
        plain.num_tokens = count_of(ends_.shape(0));
        plain.model_tokens = model_tokens;
        plain.merges = merges_.data();
        plain.num_merges = count_of(merges_.shape(0));
        plain.prefix = settings_.prefix.data();
        plain.num_prefix = count_of(settings_.prefix.size());
        plain.suffix = settings_.suffix.data();
        plain.num_suffix = count_of(settings_.suffix.size());
        raw_ = in_order(settings_.raw);
        normalized_ = in_order(settings_.normalized);
        plain.raw = {raw_.data(), count_of(raw_.size())};
        plain.normalized = {normalized_.data(), count_of(normalized_.size())};
        const lil_text_status status = open();
        if (status != LIL_TEXT_OK) {
            std::string message = lil_text_status_message(status);
            if (const char *record = lil_text_status_record(status)) {
                message += std::string(" (") + record + " " + std::to_string(tokenizer_.where) + ")";
            }
            raise("ArtifactError", message);
        }
    }
    Encoder(const Encoder &) = delete;
    Encoder &operator=(const Encoder &) = delete;

    nb::tuple encode_batch(nb::handle texts, uint32_t max_tokens) const {
        nb::object items = nb::steal(PySequence_Tuple(texts.ptr())); // nobody else can take a text away meanwhile
        if (!items.is_valid()) {
            throw nb::python_error();
        }
        std::vector<std::pair<const uint8_t *, size_t>> views;
        size_t longest = 0;
        for (nb::handle item : nb::borrow<nb::tuple>(items)) {
            views.push_back(utf8_of(item, views.size()));
            longest = std::max(longest, views.back().second);
        }
        std::vector<uint32_t> ids, lengths;
        lil_text_status status = LIL_TEXT_OK;
        {
            nb::gil_scoped_release release;
            const size_t work_bytes = lil_text_work_bytes(&tokenizer_, longest);
            const std::unique_ptr<uint64_t[]> work(new uint64_t[work_bytes / sizeof(uint64_t) + 1]); // not cleared
            lengths.reserve(views.size());
            size_t used = 0;
            for (size_t i = 0; i < views.size() && status == LIL_TEXT_OK; i++) {
                const size_t capacity = lil_text_capacity(&tokenizer_, views[i].second, max_tokens);
                ids.resize(used + capacity + 1); // one more: data() of nothing may be NULL
                size_t count = 0;
                status = lil_text_encode(&tokenizer_, views[i].first, views[i].second, max_tokens, ids.data() + used,
                                         capacity, &count, work.get(), work_bytes);
                used += count;
                lengths.push_back(static_cast<uint32_t>(count));
            }
            ids.resize(used);
        }
        if (status != LIL_TEXT_OK) {
            raise("InputError", lil_text_status_message(status));
        }
        return nb::make_tuple(array_of(std::move(ids)), array_of(std::move(lengths)));
    }

  private:
    // What does not fit is a count that the core refuses.
    static uint32_t count_of(size_t count) { return static_cast<uint32_t>(std::min<size_t>(count, UINT32_MAX)); }

    lil_text_status open() {
        const size_t bytes = lil_text_table_bytes(&settings_.plain);
        table_.reset(new uint64_t[bytes / sizeof(uint64_t) + 1]);
        return lil_text_open(&tokenizer_, &settings_.plain, table_.get(), bytes);
    }

    Settings settings_;
    Buffer text_;
    Ends ends_;
    Merges merges_;
    std::vector<lil_text_added> raw_, normalized_;
    std::unique_ptr<uint64_t[]> table_;
    lil_text tokenizer_{};
};

} // namespace

NB_MODULE(_text, m) {
    m.doc() = "The C core of the tokenizers. Use lilliput.text.Tokenizer; this is what it is made of.";
    nb::class_<Settings>(m, "Settings", "What a tokenizer is made of, but for vocabulary and merges.")
        .def_static("wordpiece", &Settings::wordpiece, nb::kw_only(), "clean_text"_a, "handle_chinese_chars"_a,
                    "strip_accents"_a, "lowercase"_a, "unk"_a, "max_input_chars_per_word"_a)
        .def_static("byte_level_bpe", &Settings::byte_level_bpe, nb::kw_only(), "add_prefix_space"_a, "use_regex"_a)
        .def_rw("prefix", &Settings::prefix)
        .def_rw("suffix", &Settings::suffix)
        .def("add", &Settings::add, "text"_a, "id"_a, "normalized"_a, "lstrip"_a, "rstrip"_a, "single_word"_a,
             "Find this text, in normalized texts or in texts as they are, and give `id` for it.")
        .def("normalize", &Settings::normalize, "text"_a, "UTF-8 as the model gets it.");
    nb::class_<Encoder>(m, "Encoder", "An opened tokenizer. It keeps the buffers that it was made from, unchanged.")
        .def(nb::init<const Settings &, nb::handle, Ends, uint32_t, Merges>(), "settings"_a, "text"_a,
             "ends"_a.noconvert(), "model_tokens"_a, "merges"_a.noconvert(),
             "Check everything and build the tables. Raises ArtifactError.")
        .def("encode_batch", &Encoder::encode_batch, "texts"_a, "max_tokens"_a,
             "The ids of all texts one after another, and how many each has, without the GIL. Raises InputError.");
}
