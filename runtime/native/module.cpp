// moepack.runtime._native: the CPU kernels and the readers. `_native.pyi` documents it for Python.
#include "memory.h"
#include "operations.h"
#include "reads.h"
#include "weights.h"

namespace moepack {

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
          [](ReadPool& pool, int fd, int64_t offset, Array<uint8_t, 1> to) {
            return pool.submit(fd, offset, extent(to, 0), to.data());
          },
          nb::arg("fd"), nb::arg("offset"), exact("to"))
      .def(
          "wait",
          [](ReadPool& pool, uint64_t ticket) {
            ReadResult result;
            {
              nb::gil_scoped_release release;
              result = pool.wait(ticket);
            }
            return nb::make_tuple(result.got, result.error);
          },
          nb::arg("ticket"))
      .def("drain", &ReadPool::drain, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace moepack

NB_MODULE(_native, m) {
  moepack::bind_weights(m);
  moepack::bind_operations(m);
  moepack::bind_reads(m);
  moepack::bind_memory(m);
}
