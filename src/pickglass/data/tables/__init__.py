"""Data sets: a table has one row an image.

``rows`` has the row, the table and the split into roles. ``layouts`` reads the folders and lists that data sets come
as, and an ``account`` says what became of every file. ``sources`` makes rows of whatever else a user has, and
``memory`` finds the images in what is no file. ``roi`` adds regions of interest, ``ground_truth`` reads the regions of
a mask, ``inspection`` says what is wrong.
"""
