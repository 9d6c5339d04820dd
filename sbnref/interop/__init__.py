"""Other libraries' models, trainers and loaders: conversion to our layer and back, our names with them, uneven ends."""
