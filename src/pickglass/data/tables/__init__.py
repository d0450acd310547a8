"""Data sets: a table has one row an image.

``rows`` has the row, the table and the split into roles. ``layouts`` reads the folders and lists that data sets come
as, ``sources`` makes rows of whatever else a user has, ``roi`` adds regions of interest. ``decoding`` reads the images
of a table in threads, ``ground_truth`` the regions of a mask, ``inspection`` says what is wrong with a data set.
"""
