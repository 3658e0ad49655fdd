// moepack.runtime._native: the CPU kernels and the readers. `_native.pyi` documents it for Python.
#include "activations.h"
#include "memory.h"
#include "operations.h"
#include "reads.h"
#include "weights.h"

namespace moepack {

static Range range(uint64_t ticket, int fd, int64_t offset, nb::list to, int pieces, bool urgent, bool forget) {
  require(pieces >= 1, "a range is read in at least 1 piece");
  require(nb::len(to) >= 1, "a range has at least one place to go to");
  Range range{ticket, fd, offset, {}, pieces, urgent, forget};
  for (nb::handle item : to) {
    Array<uint8_t, 1> place;
    require(nb::try_cast(item, place, false), "a place is a writable one-dimensional array of uint8");
    range.places.push_back({place.data(), place.size()});
  }
  return range;
}

static nb::object as_tuple(const std::optional<Arrival>& arrival) {
  if (!arrival) return nb::none();
  return nb::make_tuple(arrival->ticket, arrival->got, arrival->error);
}

static void bind_reads(nb::module_& m) {
  nb::class_<ReadPool>(m, "ReadPool")
      .def(
          "__init__",
          [](ReadPool* self, int threads) {
            require(threads >= 1 && threads <= 1024, "a read pool has 1 to 1024 threads");
            new (self) ReadPool(threads);
          },
          nb::arg("threads"))
      .def(
          "submit",
          [](ReadPool& pool, uint64_t ticket, int fd, int64_t offset, nb::list to, int pieces, bool urgent, bool forget) {
            pool.submit(range(ticket, fd, offset, to, pieces, urgent, forget));
          },
          nb::arg("ticket"), nb::arg("fd"), nb::arg("offset"), nb::arg("to"), nb::kw_only(), nb::arg("pieces") = 1,
          nb::arg("urgent") = true, nb::arg("forget") = false)
      .def("hurry", &ReadPool::hurry, nb::arg("ticket"))
      .def("cancel", &ReadPool::cancel, nb::arg("ticket"))
      .def("next",
           [](ReadPool& pool) {
             std::optional<Arrival> arrival;
             {
               nb::gil_scoped_release release;
               arrival = pool.next();
             }
             return as_tuple(arrival);
           })
      .def("abandon", &ReadPool::abandon, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &ReadPool::close, nb::call_guard<nb::gil_scoped_release>())
      .def("busy_seconds", &ReadPool::busy_seconds);
}

}  // namespace moepack

NB_MODULE(_native, m) {
  moepack::bind_weights(m);
  moepack::bind_activations(m);
  moepack::bind_operations(m);
  moepack::bind_attention(m);
  moepack::bind_delta(m);
  moepack::bind_reads(m);
  moepack::bind_memory(m);
}
