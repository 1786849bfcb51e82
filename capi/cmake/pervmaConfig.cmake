# find_package(pervma): the targets pervma::pervma, the shared library, and pervma::static; and
# pervma::umap, the headers of LLNL UMap's interface, beside one of them.
get_filename_component(_pervma_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
find_package(Threads REQUIRED)
foreach(_pervma_libdir lib lib64 lib/${CMAKE_LIBRARY_ARCHITECTURE})
    if(NOT TARGET pervma::pervma AND EXISTS "${_pervma_prefix}/${_pervma_libdir}/libpervma.so")
        add_library(pervma::pervma SHARED IMPORTED)
        set_target_properties(pervma::pervma PROPERTIES
            IMPORTED_LOCATION "${_pervma_prefix}/${_pervma_libdir}/libpervma.so"
            INTERFACE_INCLUDE_DIRECTORIES "${_pervma_prefix}/include")
    endif()
    if(NOT TARGET pervma::static AND EXISTS "${_pervma_prefix}/${_pervma_libdir}/libpervma.a")
        add_library(pervma::static STATIC IMPORTED)
        set_target_properties(pervma::static PROPERTIES
            IMPORTED_LOCATION "${_pervma_prefix}/${_pervma_libdir}/libpervma.a"
            INTERFACE_INCLUDE_DIRECTORIES "${_pervma_prefix}/include"
            INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;Threads::Threads;m;dl")
    endif()
endforeach()
if(NOT TARGET pervma::umap)
    add_library(pervma::umap INTERFACE IMPORTED)
    set_target_properties(pervma::umap PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${_pervma_prefix}/include/pervma-umap")
endif()
if(NOT TARGET pervma::pervma AND NOT TARGET pervma::static)
    set(pervma_FOUND FALSE)
    set(pervma_NOT_FOUND_MESSAGE "no library of pervma is in ${_pervma_prefix}")
endif()
