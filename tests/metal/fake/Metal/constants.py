"""The enumerations and structs of Metal that hosts here use. A test compares each with PyObjC's own metadata."""

from typing import NamedTuple

ENUMS = {
    "MTLBarrierScopeBuffers": 1,
    "MTLCommandBufferErrorInternal": 1,
    "MTLCommandBufferErrorInvalidResource": 9,
    "MTLCommandBufferErrorOutOfMemory": 8,
    "MTLCommandBufferErrorPageFault": 3,
    "MTLCommandBufferErrorTimeout": 2,
    "MTLCommandBufferErrorOptionEncoderExecutionStatus": 1,
    "MTLCommandBufferStatusCommitted": 2,
    "MTLCommandBufferStatusCompleted": 4,
    "MTLCommandBufferStatusEnqueued": 1,
    "MTLCommandBufferStatusError": 5,
    "MTLCommandBufferStatusNotEnqueued": 0,
    "MTLCommandBufferStatusScheduled": 3,
    "MTLCommandEncoderErrorStateAffected": 2,
    "MTLCommandEncoderErrorStateCompleted": 1,
    "MTLCommandEncoderErrorStateFaulted": 4,
    "MTLCommandEncoderErrorStatePending": 3,
    "MTLCommandEncoderErrorStateUnknown": 0,
    "MTLDispatchTypeConcurrent": 1,
    "MTLDispatchTypeSerial": 0,
    "MTLGPUFamilyApple10": 1010,
    "MTLGPUFamilyApple6": 1006,
    "MTLGPUFamilyApple7": 1007,
    "MTLGPUFamilyApple8": 1008,
    "MTLGPUFamilyApple9": 1009,
    "MTLGPUFamilyCommon3": 3003,
    "MTLGPUFamilyMac2": 2002,
    "MTLGPUFamilyMetal3": 5001,
    "MTLGPUFamilyMetal4": 5002,
    "MTLHazardTrackingModeDefault": 0,
    "MTLHazardTrackingModeTracked": 2,
    "MTLHazardTrackingModeUntracked": 1,
    "MTLLanguageVersion2_4": 131076,
    "MTLLanguageVersion3_0": 196608,
    "MTLLanguageVersion3_1": 196609,
    "MTLLanguageVersion3_2": 196610,
    "MTLLanguageVersion4_0": 262144,
    "MTLLibraryErrorCompileFailure": 3,
    "MTLLibraryErrorFunctionNotFound": 5,
    "MTLMathModeFast": 2,
    "MTLMathModeRelaxed": 1,
    "MTLMathModeSafe": 0,
    "MTLResourceCPUCacheModeDefaultCache": 0,
    "MTLResourceCPUCacheModeWriteCombined": 1,
    "MTLResourceHazardTrackingModeDefault": 0,
    "MTLResourceHazardTrackingModeTracked": 512,
    "MTLResourceHazardTrackingModeUntracked": 256,
    "MTLResourceStorageModeManaged": 16,
    "MTLResourceStorageModePrivate": 32,
    "MTLResourceStorageModeShared": 0,
    "MTLStorageModeManaged": 1,
    "MTLStorageModePrivate": 2,
    "MTLStorageModeShared": 0,
}

MTLCommandBufferEncoderInfoErrorKey = "MTLCommandBufferEncoderInfoErrorKey"


class MTLSize(NamedTuple):
    """Width, height and depth; where Metal wants one, PyObjC takes any three integers."""

    width: int
    height: int
    depth: int


class NSRange(NamedTuple):
    """The first and how many."""

    location: int
    length: int


def MTLSizeMake(width: int, height: int, depth: int) -> MTLSize:
    return MTLSize(width, height, depth)


def NSMakeRange(location: int, length: int) -> NSRange:
    return NSRange(location, length)
