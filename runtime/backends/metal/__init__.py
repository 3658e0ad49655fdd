"""The Metal backend: kernels in runtime/kernels/metal, driven through PyObjC. It has never run on Apple hardware."""
